"""What a user should know of how prompts begin and end, before a run learns from them."""

from collections.abc import Collection, Iterator
from typing import NamedTuple

from typing_extensions import override

from grpo_pl.prompts.chat import appended_tokens
from grpo_pl.prompts.prompt_set import PromptSet


class Notice(NamedTuple):
    """Something about all prompts of a key."""

    found: str
    fix: str = ""
    """The change to make; empty where the prompts are as they should be."""

    @override
    def __str__(self) -> str:
        """Both in one sentence."""
        return "; ".join(filter(None, self))


def notices(prompts: PromptSet, ends: Collection[int]) -> Iterator[Notice]:
    """What is to be said of prompts; `ends` are the tokens that end a response."""
    format, tokenizer, key, rows = prompts.format, prompts.tokenizer, prompts.key, prompts.rows
    if opened := sorted({prompt.opened for prompt in rows} - {""}):
        texts = " or ".join([*map(repr, opened[:3]), *["others"] * (len(opened) > 3)])
        yield Notice(
            f"data.format: prompts of {key} open {texts} for the response, which goes on from there: Judge, "
            "MathAnswer and Format (unless its `opened` is false) read it before the response, others do not"
        )
    if not format.use_chat_template and (appended := appended_tokens(tokenizer)):
        yield Notice(
            f"data.format: the tokenizer ends every text in {tokenizer.decode(appended)!r}, which prompts of "
            f"{key} are given without, for the response goes on where they end"
        )
    if missing := format.layout(tokenizer).missing:
        yield Notice(
            f"data.format: the chat template begins no response: prompts of {key} end in the user's turn, "
            f"without {missing!r}",
            "give a template that knows add_generation_prompt as data.format.template_kwargs.chat_template",
        )
    if ended := [prompt for prompt in rows if prompt.token_ids[-1] in ends]:
        token = tokenizer.decode(ended[0].token_ids[-1:])
        yield Notice(
            f"data.format: {len(ended)} of {len(rows)} prompts of {key} end in {token!r}, behind which a "
            "model has nothing to say",
            "correct the chat template or data.format.question_template",
        )
    bos = tokenizer.bos_token_id
    if bos is not None and any(prompt.token_ids[:2] == [bos, bos] for prompt in rows):
        yield Notice(
            f"data.format: prompts of {key} begin with {tokenizer.decode([bos, bos])!r}, once by the "
            "tokenizer and once by their text",
            "leave it out of data.format or of the data",
        )
    if format.shows_today(tokenizer):
        yield Notice(
            f"data.format: the chat template shows today's date in prompts of {key}, so that a run that is "
            "resumed on another day has others",
            "set data.format.date to a day such as 2026-01-31",
        )
