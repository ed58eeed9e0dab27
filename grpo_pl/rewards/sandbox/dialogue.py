"""Assertions about a program that runs in another sandbox: only plain data goes from one to the other.

So a program never sees the expected values, and its results are compared as plain data, not by their own
`__eq__`. Both sandboxes get this file; it imports nothing beyond Python's library.
"""

import builtins
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

_SEQUENCES: dict[str, Callable[..., Any]] = {"tuple": tuple, "set": set, "frozenset": frozenset}


class Line:
    """Messages to the other sandbox and back: one line of JSON each."""

    def __init__(self) -> None:
        self._in, self._out = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
        nothing = os.open("/dev/null", os.O_RDWR)
        for descriptor in (0, 1):  # programs and tests must not read or print messages
            os.dup2(nothing, descriptor)
        sys.set_int_max_str_digits(0)
        self._objects: list[Any] = []  # the other side knows their indices

    def send(self, message: Any) -> None:
        """Send plain data, and references to all other objects."""
        print(json.dumps(self._encoded(message)), file=self._out, flush=True)

    def receive(self) -> Any:
        """The next message; EOFError after the last."""
        line = self._in.readline()
        if not line:
            raise EOFError("the other side has ended")
        return self._decoded(json.loads(line))

    def _encoded(self, value: Any) -> Any:
        if value is None or isinstance(value, bool | int | float | str):
            return value
        if isinstance(value, list | range | Iterator):
            return [self._encoded(item) for item in value]
        if isinstance(value, dict):
            return {"dict": [[self._encoded(k), self._encoded(v)] for k, v in value.items()]}
        if isinstance(value, complex):
            return {"complex": [value.real, value.imag]}
        if isinstance(value, bytes | bytearray):
            return {"bytes": value.hex()}
        for name, kind in _SEQUENCES.items():
            if isinstance(value, kind):  # type: ignore[arg-type]
                return {name: [self._encoded(item) for item in value]}
        if isinstance(value, Remote):
            return {"yours": value._Remote__index}
        self._objects.append(value)
        return {"mine": len(self._objects) - 1}

    def _decoded(self, value: Any) -> Any:
        if isinstance(value, list):
            return [self._decoded(item) for item in value]
        if not isinstance(value, dict):
            return value
        [(name, content)] = value.items()
        if name == "dict":
            return {self._decoded(k): self._decoded(v) for k, v in content}
        if name == "complex":
            return complex(*content)
        if name == "bytes":
            return bytes.fromhex(content)
        if name == "mine":
            return Remote(self, content)
        if name == "yours":
            return self._objects[content]
        return _SEQUENCES[name](self._decoded(item) for item in content)


class Remote:
    """An object of the other side; without an index the program itself, whose attributes are its globals."""

    def __init__(self, line: Line, index: int | None) -> None:
        self.__line, self.__index = line, index  # mangled, so that they hide no attribute over there

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self.__ask("get", name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:  # noqa: D102
        return self.__ask("call", args, kwargs)

    def __ask(self, *request: Any) -> Any:
        """The other side's answer; its errors are raised again, as RuntimeError if they are not built in."""
        self.__line.send([self.__index, *request])
        value, error = self.__line.receive()
        if error is not None:
            kind = getattr(builtins, str(error), None)
            raise kind if isinstance(kind, type) and issubclass(kind, Exception) else RuntimeError(error)
        return value


class Names(dict[str, Any]):
    """The globals of a test: names that neither it nor Python defines are looked up in the program."""

    def __init__(self, program: Remote) -> None:
        super().__init__(__name__="tests")
        self._program = program

    def __missing__(self, name: str) -> Any:
        if hasattr(builtins, name):
            raise KeyError(name)
        return getattr(self._program, name)


def serve(path: str) -> None:
    """Run a program and answer the requests of the other side."""
    line = Line()
    names: dict[str, Any] = {"__name__": "program"}
    with open(path, encoding="utf-8") as file:
        exec(compile(file.read(), path, "exec"), names)
    while True:
        index, action, *request = line.receive()
        try:
            if action == "call":
                args, kwargs = request
                answer = [line._objects[index](*args, **kwargs), None]
            elif index is None:
                answer = [names[request[0]], None]
            else:
                answer = [getattr(line._objects[index], request[0]), None]
            line.send(answer)
        except Exception as error:  # noqa: BLE001 - the program may raise anything
            line.send([None, type(error).__name__])


def check(path: str) -> None:
    """Run the tests in a JSON file against the program on the other side; write 1 or 0 for each to stderr."""
    line, verdicts = Line(), os.dup(2)
    os.dup2(0, 2)
    with open(path, encoding="utf-8") as file:
        tests = json.load(file)
    for test in tests:
        try:
            exec(compile(test, "test", "exec"), Names(Remote(line, None)))
            os.write(verdicts, b"1")
        except Exception:  # noqa: BLE001 - the test may raise anything
            os.write(verdicts, b"0")
