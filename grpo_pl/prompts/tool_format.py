"""Prompts that show tools: by the chat template, or by a text in the system message."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from typing_extensions import override

from grpo_pl.prompts.calls import CallFormat
from grpo_pl.prompts.chat import ChatFormat, Tokenizer
from grpo_pl.system.refusal import ConfigError
from grpo_pl.types import Message


@dataclass(kw_only=True)
class ToolFormat(ChatFormat):
    """A ChatFormat whose conversations show tools."""

    calls: CallFormat
    tools: list[dict[str, Any]] = field(default_factory=list)

    @property
    def description(self) -> str | None:
        """The text about the tools; None where the chat template shows them."""
        return self.calls.describe(self.tools)

    @override
    def render(self, conversations: Sequence[Sequence[Message]], tokenizer: Tokenizer, **options: Any) -> Any:
        text = self.description
        if text is None:
            return super().render(conversations, tokenizer, **options | {"tools": self.tools})
        try:
            return super().render([with_text(c, text) for c in conversations], tokenizer, **options)
        except ConfigError:  # a template that takes no system message
            return super().render(
                [with_text(c, text, as_user=True) for c in conversations], tokenizer, **options
            )


def with_tools(format: ChatFormat, calls: CallFormat, tools: Sequence[dict[str, Any]]) -> ChatFormat:
    """The format, showing the tools; itself without any."""
    own = {each.name: getattr(format, each.name) for each in fields(ChatFormat)}
    return ToolFormat(**own, calls=calls, tools=list(tools)) if tools else format


def with_text(messages: Sequence[Message], text: str, *, as_user: bool = False) -> list[Message]:
    """The conversation with a text at the end of its system message, which is made where there is none.

    `as_user`: before the user's first message instead.
    """
    first, *others = messages
    if first["role"] == "system" and not as_user:
        return [first | {"content": f"{first['content']}\n\n{text}"}, *others]
    if as_user:
        return [first | {"content": f"{text}\n\n{first['content']}"}, *others]
    return [{"role": "system", "content": text}, *messages]
