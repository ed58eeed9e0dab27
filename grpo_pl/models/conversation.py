"""A conversation as text, for readers without a chat template."""

from collections.abc import Mapping, Sequence


def as_text(messages: Sequence[Mapping[str, str]]) -> str:
    """The content of a single message; of several, each behind its role, with an empty line between.

    Example: `System: Be brief.`, an empty line, `User: What is 2 + 3?`.
    """
    if len(messages) == 1:
        return messages[0]["content"]
    return "\n\n".join(f"{m['role'].capitalize()}: {m['content']}" for m in messages)
