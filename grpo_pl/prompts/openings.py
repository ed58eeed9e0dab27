"""What a prompt opens for the response, such as `<think>`: the response goes on from there."""

import re

_EMPTY_PAIR = re.compile(
    r"<(?P<xml>\w[\w:.-]*)>\s*</(?P=xml)>"
    r"|\[(?P<bracket>\w+)\]\s*\[/(?P=bracket)\]"
    r"|<\|(?:start|begin_of)_(?P<word>\w+)\|>\s*<\|end(?:_of)?_(?P=word)\|>",
    re.IGNORECASE,
)
"""A part of a response that a template shows as empty."""
_TAG = re.compile(r"<[^<>]*>?|\[[^\[\]]*\]?")
_NO_OPENING = (
    r"(?:\w+[_▁])?end(?:[_▁-][\w▁-]*|of\w+)?|eo[a-z](?:_\w+)?|im_start|s|bos|cls|sep|pad|unk|mask|image|inst|sys"
    r"|system|user|human|assistant|bot|model|ai"
)
"""What a tag at the end of a plain text is called that ends something or heads a turn."""
_OPENING = (
    rf"[<\[◁⟨〈《【«][|\uff5c]?(?!(?:{_NO_OPENING})[|\uff5c]?[>\]▷⟩〉》】»])"
    r"[^\W\d_](?:[\w:.▁-]*\w)?(?:\s+\w+=[^<>\[\]]*)?[|\uff5c]?[>\]▷⟩〉》】»]"
)
_OPEN_AT_END = re.compile(
    rf"(?:(?:<\|channel\|>\w+(?=<\|message\|>)|{_OPENING}(?<!\[\w\]))\s*)+\Z", re.IGNORECASE
)
_END = 500
"""Characters at the end of a text among which its last tags are."""


def opened_by_template(asked: str, answered: str) -> str:
    r"""The end of a prompt that belongs to the response: what stands behind the header of its turn.

    Args:
        asked: The prompt behind the last message, up to the response.
        answered: The same conversation with its response, between the two.

    Examples: for `("<|assistant|><think>\n", "<|assistant|>")` it is `<think>\n`; the empty thought in
    `("<|assistant|>", "<|assistant|>\n<think></think>\n")` is not the prompt's, and nothing is opened.
    """
    pair = _EMPTY_PAIR.search(answered)
    header = answered[: pair.start()] if pair else answered
    common = next((i for i, (a, b) in enumerate(zip(asked, header, strict=False)) if a != b), None)
    common = min(len(asked), len(header)) if common is None else common
    if common < len(header):
        common = _whole_tags(asked, common)
    opened = asked[common:]
    return opened if opened.strip() else ""


def _whole_tags(text: str, end: int) -> int:
    """An end that cuts no tag in two, nor a tag from the word behind it: `<|channel|>analysis`."""
    for tag in _TAG.finditer(text):
        named = tag.end() == end and text[end : end + 1].isalpha()
        if tag.start() < end and (end < tag.end() or named):
            return tag.start()
    return end


def opened_by_text(text: str) -> str:
    r"""The tags with which a plain text ends: `<think>\n` of `Let me think.\n<think>\n`.

    Tags that close something or head a turn open nothing: `[/INST]`, `<|im_end|>`, `<|assistant|>`.
    """
    match = _OPEN_AT_END.search(text[-_END:])
    return match[0] if match else ""


_THOUGHT = re.compile(
    r"\s*([<\[◁][|\uff5c]?(?:\w+:)?(?:(?:start|begin_of)_)?(?:think(?:ing)?|thought|reasoning)[|\uff5c]?[>\]▷])",
    re.IGNORECASE,
)
_END_OF_THOUGHT = re.compile(r"</think>|\[/THINK\]")


def split_thinking(text: str) -> tuple[str, str]:
    """What a turn thinks, and what it says behind that; a thought without its end is all that there is.

    The turn begins with what the prompt has opened of it. A thought whose begin is not known is one, too.
    """
    if begin := _THOUGHT.match(text):
        tag = begin[1]
        end = re.sub("START|BEGIN", "END", re.sub("start|begin", "end", tag))
        end = f"{tag[0]}/{tag[1:]}" if end == tag else end
        thinking, _, said = text[begin.end() :].partition(end)
    elif closed := _END_OF_THOUGHT.search(text):
        thinking, said = text[: closed.start()], text[closed.end() :]
    else:
        thinking, said = "", text
    return thinking.strip(), said
