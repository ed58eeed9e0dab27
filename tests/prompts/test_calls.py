"""Tool calls as policies write them: read, or answered by a sentence; never run."""

import random
from typing import Any

import pytest
from helpers.chats import ADD, hostile_text

from grpo_pl.prompts.calls import CallFormat, Hermes, Llama, Tag
from grpo_pl.types import Call

SUM = Call(name="add", arguments={"a": 2, "b": 3})
OTHER = Call(name="add", arguments={"a": 4, "b": "x"})


def hermes(written: str) -> str:
    return f"<tool_call>\n{written}\n</tool_call>"


def tag(written: str) -> str:
    return f"<call>{written}</call>"


ADDITION = '{"name": "add", "arguments": {"a": 2, "b": 3}}'
OTHER_ADDITION = '{"name": "add", "arguments": {"a": 4, "b": "x"}}'
AS_TEXT = '{"name": "add", "arguments": "{\\"a\\": 2, \\"b\\": 3}"}'
READ: dict[str, tuple[CallFormat, str, list[Call], str]] = {
    "Hermes": (Hermes(), hermes(ADDITION), [SUM], ""),
    "Hermes, without lines": (Hermes(), f"<tool_call>{ADDITION}</tool_call>", [SUM], ""),
    "Hermes, several and words": (
        Hermes(),
        f"I add. {hermes(ADDITION)}\n{hermes(OTHER_ADDITION)} Done.",
        [SUM, OTHER],
        "I add. Done.",
    ),
    "Hermes, a list": (Hermes(), hermes(f"[{ADDITION}, {ADDITION}]"), [SUM, SUM], ""),
    "Hermes, arguments as text": (Hermes(), hermes(AS_TEXT), [SUM], ""),
    "Hermes, as OpenAI": (Hermes(), hermes(f'{{"type": "function", "function": {ADDITION}}}'), [SUM], ""),
    "Hermes, no arguments": (Hermes(), hermes('{"name": "look"}'), [Call(name="look")], ""),
    "Hermes, no call": (Hermes(), "The answer is {5}.", [], "The answer is {5}."),
    "Llama": (Llama(), '{"name": "add", "parameters": {"a": 2, "b": 3}}', [SUM], ""),
    "Llama, tagged": (Llama(), f"Well.<|python_tag|>{ADDITION}", [SUM], "Well."),
    "Llama, several": (Llama(), f" {ADDITION}; {OTHER_ADDITION}\n", [SUM, OTHER], ""),
    "Llama, a semicolon in it": (
        Llama(),
        '{"name": "say", "parameters": {"x": "a; {"}}',
        [Call(name="say", arguments={"x": "a; {"})],
        "",
    ),
    "Llama, no call": (Llama(), 'It is {"a": 5}.', [], 'It is {"a": 5}.'),
    "Llama, another object": (Llama(), '{"a": 5}', [], '{"a": 5}'),
    "Tag": (Tag(), tag("add(a=2, b=3)"), [SUM], ""),
    "Tag, by place": (Tag(), tag(" add(2, 3) "), [SUM], ""),
    "Tag, both": (Tag(), tag("add(2, b=3)"), [SUM], ""),
    "Tag, several": (
        Tag(),
        "So " + tag("add(2, 3)") + " " + tag("add(4, b='x')") + ".",
        [SUM, OTHER],
        "So .",
    ),
    "Tag, values": (
        Tag(),
        tag("say(x=[-1, 2.5, None, True, 'a)b</'], y={'k': (1,)})"),
        [Call(name="say", arguments={"x": [-1, 2.5, None, True, "a)b</"], "y": {"k": [1]}})],
        "",
    ),
    "Tag, no arguments": (Tag(), tag("look()"), [Call(name="look")], ""),
    "Tag, an unknown tool": (Tag(), tag("sum(2)"), [Call(name="sum", arguments={"0": 2})], ""),
}


@pytest.mark.parametrize("case", READ)
def test_a_call_is_read(case: str) -> None:
    format, text, calls, left = READ[case]
    said, found = format.parse(text, [ADD])
    assert (said.strip(), found) == (left, calls)


MISTAKES: dict[str, tuple[CallFormat, str, str]] = {
    "half": (
        Hermes(),
        'I add. <tool_call>{"name": "add", "argum',
        'no </tool_call>: \'{"name": "add", "argum\'',
    ),
    "no end": (Hermes(), f"<tool_call>{ADDITION}", "A tool call has no </tool_call>"),
    "half JSON": (Hermes(), hermes('{"name": "add",'), 'not well formed: \'{"name": "add",\''),
    "no name": (Hermes(), hermes('{"arguments": {}}'), 'it has no "name"'),
    "a number": (Hermes(), hermes("5"), 'it has no "name"'),
    "arguments in a list": (Hermes(), hermes('{"name": "add", "arguments": [2, 3]}'), "no JSON object"),
    "arguments of null": (Hermes(), hermes('{"name": "add", "arguments": null}'), "no JSON object"),
    "text of no JSON": (Hermes(), hermes('{"name": "add", "arguments": "2, 3"}'), "not well formed"),
    "deep": (Hermes(), hermes("[" * 99999), "not well formed"),
    "deep arguments": (
        Hermes(),
        hermes('{"name": "add", "arguments": {"a": ' + "[" * 150 + "]" * 150 + "}}"),
        "its arguments have more than 100 levels",
    ),
    "a long number": (Hermes(), hermes("9" * 9999), "could not be read"),
    "half Llama": (Llama(), '{"name": "add", "param', "not well formed"),
    "Llama and words": (Llama(), f"{ADDITION} So it is.", "not well formed: 'So it is.'"),
    "Llama in Python": (Llama(), '<|python_tag|>brave_search.call(query="x")', "not well formed"),
    "half tag": (Tag(), "I add. <call>add(a=2", "no </call>: 'add(a=2'"),
    "half call": (Tag(), tag("add(a=2"), "not well formed"),
    "no call": (Tag(), tag("2 + 3"), "it is no call such as add(a=2, b=3)"),
    "a call of a call": (Tag(), tag("add(2)(3)"), "it is no call"),
    "an attribute": (Tag(), tag("os.system('x')"), "it is no call"),
    "code": (Tag(), tag("add(a=__import__('os').getpid(), b=3)"), "an argument is no literal"),
    "a comprehension": (Tag(), tag("add(a=[x for x in (1, 2)], b=3)"), "an argument is no literal"),
    "a name": (Tag(), tag("move(where=left)"), "an argument is no literal"),
    "bytes": (Tag(), tag("say(x=b'a')"), "an argument is no literal"),
    "infinity": (Tag(), tag("say(x=1e999)"), "an argument is no literal"),
    "twice": (Tag(), tag("add(2, a=3)"), "an argument has no name or is given twice"),
    "unpacked": (Tag(), tag("add(**{'a': 2})"), "an argument has no name"),
    "starred": (Tag(), tag("add(*[2, 3])"), "an argument is no literal"),
    "too many": (Tag(), tag("add(1, 2, 3)"), "add takes 2 arguments and gets 3"),
    "deep Python": (Tag(), tag("add(" * 9999), "not well formed"),
    "deep literals": (Tag(), tag("add(" + "-" * 9999 + "1)"), "could not be read"),
    "a zero byte": (Tag(), tag("add(\0)"), "could not be read"),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_what_cannot_be_read_becomes_a_sentence(case: str) -> None:
    format, text, sentence = MISTAKES[case]
    said, (*calls, mistake) = format.parse(text, [ADD])
    assert isinstance(mistake, str)
    assert sentence in mistake
    assert mistake.endswith(".")
    assert len(mistake) < 500
    assert case.startswith("Llama and") == bool(calls)
    assert said in ("", "I add. ")


def test_calls_around_a_half_one_are_read() -> None:
    text = f"{tag('add(1, 2)')} <call>add(3, {tag('add(5, 6)')}"
    _, (first, half, last) = Tag().parse(text, [ADD])
    assert [call.arguments["a"] for call in (first, last) if isinstance(call, Call)] == [1, 5]
    assert half == "A tool call has no </call>: 'add(3,'."


def test_a_tag_shows_the_tools_in_few_words() -> None:
    look: dict[str, Any] = {"type": "function", "function": {"name": "look", "parameters": None}}
    assert Tag().describe([ADD, look]) == (
        "Call a tool by writing <call>add(a=..., b=...)</call>. The tools are:\n"
        "add(a: integer, b: integer): Add two numbers.\nlook()"
    )


@pytest.mark.parametrize("format", [Hermes(), Llama(), Tag()])
def test_no_text_raises(format: CallFormat) -> None:
    draws = random.Random(3)
    for _ in range(2000):
        text = hostile_text(draws)
        for whole in (text, f"<tool_call>{text}</tool_call>", tag(text), f"<|python_tag|>{text}"):
            for mistake in format.parse(whole, [ADD])[1]:
                assert isinstance(mistake, Call) or len(mistake) < 900
