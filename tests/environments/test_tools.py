from collections.abc import Callable
from typing import Any, Literal

import pytest
from helpers import episodes
from jsonargparse import ArgumentParser
from transformers.utils import get_json_schema

from grpo_pl.environments.base import Environment
from grpo_pl.environments.schemas import tool_schema
from grpo_pl.environments.tools import ToolError, Tools
from grpo_pl.system.refusal import ConfigError
from grpo_pl.types import Call, Said, Turn


def call(tool: str, **arguments: Any) -> Call:
    return Call(name=tool, arguments=arguments)


def results(tools: Environment, *attempts: Call | str) -> list[str]:
    turn = tools.step(Said(text="", attempts=attempts))
    assert (turn.reward, turn.done) == (0.0, False)
    assert {message["role"] for message in turn.messages} == {"tool"}
    assert [message.get("name") for message in turn.messages] == [
        call.name if isinstance(call, Call) else None for call in attempts
    ]
    return [message["content"] for message in turn.messages]


def names(tools: Environment) -> list[str]:
    return [tool["function"]["name"] for tool in tools.tools]


def test_the_public_methods_of_a_subclass_are_its_tools_in_their_order():
    assert names(episodes.Toolbox()) == ["add", "total", "wait_for", "broken", "take_memory", "odd"]


def test_functions_of_a_config_are_tools():
    parser = ArgumentParser()
    parser.add_argument("--environment", type=Environment)
    chosen = ["--environment=Tools", "--environment.tools=[helpers.episodes.power, time.sleep]"]
    with pytest.raises(ConfigError, match=r"tool sleep: "):
        parser.instantiate_classes(parser.parse_args(chosen))
    chosen = ["--environment=Tools", "--environment.tools=[helpers.episodes.power]"]
    tools = parser.instantiate_classes(parser.parse_args(chosen)).environment
    assert names(tools) == ["power"]
    assert results(tools, call("power", base=1.5), call("power", base=2, exponent=3)) == ["2.25", "8"]


def test_a_schema_is_made_of_signature_and_docstring():
    assert episodes.Toolbox().tools[0] == {
        "type": "function",
        "function": {
            "name": "add",
            "description": "Add two numbers.",
            "parameters": {
                "type": "object",
                "properties": {
                    "a": {"type": "integer", "description": "The first."},
                    "b": {"type": "integer", "description": "The second."},
                },
                "required": ["a", "b"],
            },
        },
    }
    parameters = tool_schema(episodes.power)["function"]["parameters"]  # numpy's style, and a default
    assert parameters == {
        "type": "object",
        "properties": {
            "base": {"type": "number", "description": "What is multiplied."},
            "exponent": {"type": "integer", "description": "How often."},
        },
        "required": ["base"],
    }


def search(
    query: str,
    limit: int = 3,
    ratio: float = 0.5,  # noqa: ARG001
    exact: bool = False,  # noqa: ARG001
    kind: Literal["text", "image"] = "text",  # noqa: ARG001
    words: list[str] | None = None,  # noqa: ARG001
    nested: list[list[int]] | None = None,  # noqa: ARG001
    by: int | str = 1,  # noqa: ARG001
    more: dict | None = None,  # noqa: ARG001
    until: int | None = None,  # noqa: ARG001
) -> str:
    """
    Search a library. It is large.

    Args:
        query: What is sought,
            in words.
        limit: How many.
        ratio: Of all.
        exact: Whether words count.
        kind: Of the result.
        words: Further ones.
        nested: Numbers.
        by: An order.
        more: Anything.
        until: A year.
    """
    return query * limit


def test_schemas_are_those_of_transformers():
    ours, theirs = tool_schema(search)["function"], get_json_schema(search)["function"]
    assert ours["name"] == theirs["name"]
    assert ours["description"] == theirs["description"]
    assert ours["parameters"]["required"] == theirs["parameters"]["required"]
    ours, theirs = ours["parameters"]["properties"], theirs["parameters"]["properties"]
    assert ours.pop("by") == {
        "anyOf": [{"type": "integer"}, {"type": "string"}],
        "description": theirs.pop("by")["description"],
    }
    ours["query"]["description"] = " ".join(ours["query"]["description"].split())
    assert ours == theirs


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ({}, "argument query is missing"),
        ({"query": "a", "hits": 3}, "there is no argument hits; it takes query, limit, "),
        ({"query": 3}, "argument query: expected {'type': 'string'}, got 3"),
        ({"query": "a", "limit": "3"}, "argument limit: expected {'type': 'integer'}, got '3'"),
        ({"query": "a", "limit": True}, "argument limit: expected {'type': 'integer'}, got True"),
        ({"query": "a", "limit": 2.5}, "argument limit: expected {'type': 'integer'}, got 2.5"),
        ({"query": "a", "limit": None}, "argument limit: expected {'type': 'integer'}, got None"),
        ({"query": "a", "exact": 1}, "argument exact: expected {'type': 'boolean'}, got 1"),
        (
            {"query": "a", "kind": "film"},
            "argument kind: expected {'type': 'string', 'enum': ['text', 'image']}",
        ),
        ({"query": "a", "words": ["b", 3]}, "argument words: expected {'type': 'array', 'items': "),
        ({"query": "a", "nested": [[1], ["b"]]}, "argument nested: expected "),
        ({"query": "a", "by": 2.5}, "argument by: expected {'anyOf': "),
        ({"query": "a", "more": []}, "argument more: expected {'type': 'object', 'nullable': True}, got []"),
    ],
)
def test_bad_arguments_go_back_in_a_sentence(arguments, wrong):
    [said] = results(Tools([f"{__name__}.search"]), Call(name="search", arguments=arguments))
    assert said.startswith(f"Error: {wrong}")


@pytest.mark.parametrize(
    "arguments",
    [
        {"limit": 2, "ratio": 1, "exact": True, "kind": "image", "words": ["b"], "nested": [[1], []]},
        {"words": None, "nested": None, "by": "x", "more": {"a": [1]}, "until": None},
    ],
)
def test_good_arguments_are_taken(arguments):
    given = {"query": "a", "limit": 2, **arguments}
    assert results(Tools([f"{__name__}.search"]), Call(name="search", arguments=given)) == ["aa"]


def test_an_answer_without_a_call_ends_the_episode():
    assert episodes.Toolbox().step(Said(text="It is 5.")) == Turn(done=True)


def test_results_are_text_or_json_and_the_object_keeps_its_state():
    tools = episodes.Toolbox()
    assert results(tools, call("add", a=2, b=3)) == ["5"]
    assert results(tools, call("total")) == ['{"calls": 1, "of": ["add"], "é": null}']
    assert results(tools, call("odd")) == ["?"]


def test_mistakes_of_the_policy_are_told_in_the_order_of_its_calls():
    tools = episodes.Toolbox()
    power = Tools(["helpers.episodes.power"])
    calls = (
        call("subtract", a=2),
        call("add", a=2, b=3),
        "a call has no end",
        call("add", a="2", b=3),
        call("_hidden"),
        call("step"),
    )
    there = "there are add, total, wait_for, broken, take_memory, odd"
    assert results(tools, *calls) == [
        f"Error: there is no tool subtract; {there}",
        "5",
        "Error: a call has no end",
        "Error: argument a: expected {'type': 'integer'}, got '2'",
        f"Error: there is no tool _hidden; {there}",
        f"Error: there is no tool step; {there}",
    ]
    assert results(tools, "a call has no end") == ["Error: a call has no end"]
    [odd] = tools.step(Said(text="", attempts=(call("\ud800"),))).messages
    assert odd == {"role": "tool", "name": "?", "content": f"Error: there is no tool ?; {there}"}
    assert results(power, call("power", base=0, exponent=-1)) == [
        "Error: ZeroDivisionError: 0.0 cannot be raised to a negative power"
    ]


def test_calls_of_one_turn_run_side_by_side_and_are_answered_in_their_order():
    """The first comes back when the last was called: one after the other, it would never."""
    a, b, c = (call("wait_for", name=x, other=y) for x, y in ("ac", "bb", "ca"))
    assert results(episodes.Toolbox(), a, b, c) == ["a", "b", "c"]


@pytest.mark.parametrize("many", [1, 2])
@pytest.mark.parametrize(("name", "error"), [("broken", ToolError), ("take_memory", MemoryError)])
def test_failures_of_a_tool_itself_are_those_of_the_environment(many, name, error):
    with pytest.raises(error):
        episodes.Toolbox().step(Said(text="", attempts=(call(name),) * many))


def test_tools_without_a_tool_or_with_two_of_one_name_are_refused():
    with pytest.raises(ConfigError, match=r"^tools: expected import paths of functions"):
        Tools()
    with pytest.raises(ConfigError, match=r"^tools: expected different names, got power, power"):
        Tools(["helpers.episodes.power", "helpers.episodes.power"])


class Empty(Tools):
    def __init__(self) -> None:
        """Without that of Tools, as most subclasses."""

    def _hidden(self) -> str:
        return "no"


def test_a_subclass_without_a_tool_is_refused_when_its_tools_are_asked_for():
    with pytest.raises(ConfigError, match=r"^Empty has no tool: give it a public method$"):
        _ = Empty().tools


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("helpers.episodes.no_such", r"^tools: helpers.episodes.no_such cannot be imported \(AttributeError"),
        ("no_such_module.f", r"^tools: no_such_module.f cannot be imported \(ModuleNotFoundError"),
        ("power", r"^tools: power cannot be imported \(ValueError"),
        ("helpers.episodes.Obeys", "^tools: helpers.episodes.Obeys is no function$"),
        ("helpers.episodes.unannotated", "tool unannotated: annotate parameter x with str, int, "),
        ("helpers.episodes.many", r"tool many: parameter \*numbers: int cannot be given by its name$"),
        ("helpers.episodes.later", "tool later: it is async"),
        ("math.sqrt", "tool sqrt: parameter x cannot be given by its name"),
    ],
)
def test_what_cannot_be_a_tool_is_refused_at_once(path: str, sentence: str):
    with pytest.raises(ConfigError, match=sentence):
        Tools([path])


def untyped(of: Callable[[int], int]) -> int:
    return of(1)


def test_a_type_that_json_lacks_is_refused():
    with pytest.raises(ConfigError, match=r"tool untyped: annotate parameter of "):
        Tools([f"{__name__}.untyped"])
