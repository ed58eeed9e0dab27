"""Checks of the prompts: what the model reads, how long it is, and whether it stands there once."""

from collections.abc import Collection, Mapping
from statistics import median

from grpo_pl.commands.doctor.findings import Finding, good, warn_if
from grpo_pl.datamodule import RolloutDataModule
from grpo_pl.prompts.notices import notices
from grpo_pl.prompts.prompt_set import PromptSet
from grpo_pl.types import Prompt

SHOWN = 20
"""Prompts that are shown, and whose gold answers are scored."""


def read_sets(data: RolloutDataModule) -> dict[str, PromptSet]:
    """The prompts of `data.train` and `data.val`, as `fit` reads them."""
    sources = {"data.train": data.train, "data.val": data.val}
    return {key: data.read_prompts(key.partition(".")[2], s) for key, s in sources.items() if s is not None}


def check_prompts(sets: Mapping[str, PromptSet], ends: Collection[int]) -> list[Finding]:
    """The findings about the prompts of each key; `ends` are the tokens that end a response."""
    findings = [lengths(key, prompts) for key, prompts in sets.items()]
    findings += [template(key, prompts, ends) for key, prompts in sets.items()]
    findings += [repeats(key, prompts) for key, prompts in sets.items()]
    return [*findings, in_both(sets["data.train"], sets["data.val"])] if "data.val" in sets else findings


def spread(prompts: PromptSet) -> list[Prompt]:
    """Up to 20 prompts, evenly spaced."""
    count = min(SHOWN, len(prompts))
    return [prompts[i * len(prompts) // count] for i in range(count)]


def shown(prompts: PromptSet) -> list[tuple[str, str]]:
    """Up to 20 prompts as the model reads them, with their gold answers."""
    decode = prompts.tokenizer.decode
    return [(decode(prompt.token_ids), prompt.answer) for prompt in spread(prompts)]


def lengths(key: str, prompts: PromptSet) -> Finding:
    """The tokens of the prompts, and how many were too long."""
    tokens = [len(prompt.token_ids) for prompt in prompts.rows]
    found = f"{len(tokens):,} prompts of {min(tokens)} to {max(tokens)} tokens, median {median(tokens):.0f}"
    found += f"; {prompts.num_long} were longer than data.max_prompt_tokens" if prompts.num_long else ""
    fix = "raise data.max_prompt_tokens, unless data.long_prompts does what you want with them"
    return warn_if(prompts.num_long > 0, key, found, fix, prompts=len(tokens), most_tokens=max(tokens))


def template(key: str, prompts: PromptSet, ends: Collection[int]) -> Finding:
    """What prompts open, how they begin and end, and whether they are others tomorrow."""
    said = list(notices(prompts, ends))
    found = "; ".join(notice.found.removeprefix("data.format: ") for notice in said)
    fix = "; ".join(notice.fix for notice in said if notice.fix)
    found = found or f"prompts of {key} open nothing, and end in no token that ends a response"
    return warn_if(bool(fix), f"{key}: ends", found, fix)


def repeats(key: str, prompts: PromptSet) -> Finding:
    """Prompts that stand there several times, above all with different answers."""
    by_tokens: dict[tuple[int, ...], set[str]] = {}
    for prompt in prompts.rows:
        by_tokens.setdefault(tuple(prompt.token_ids), set()).add(prompt.answer)
    repeated = len(prompts) - len(by_tokens)
    contradictory = sum(len(gold) > 1 for gold in by_tokens.values())
    found = f"{repeated} of {len(prompts):,} prompts repeat another one; {contradictory} have several answers"
    fix = f"leave repeated rows out of {key}, or put what tells them apart into the question"
    check = f"{key}: repeats"
    return Finding(check, "warning", found, fix) if repeated else good(check, "no prompt stands there twice")


def in_both(train: PromptSet, val: PromptSet) -> Finding:
    """Validation prompts that are trained on."""
    known = {tuple(prompt.token_ids) for prompt in train.rows}
    both = [prompt for prompt in val.rows if tuple(prompt.token_ids) in known]
    found = f"{len(both)} of {len(val):,} prompts of data.val are also in data.train"
    found += f" (for instance {both[0].text!r:.60})" if both else ""
    return warn_if(bool(both), "train and val", found, "set `rows` or the splits so that they share none")
