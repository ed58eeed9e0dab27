"""Pairs of responses, and steps with labels, from rollouts and a verifier."""

import argparse
import json
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from rich.progress import track

from grpo_pl.commands.engine import of_policy, started
from grpo_pl.config.cli import configure
from grpo_pl.datamodule import RolloutDataModule
from grpo_pl.functional import derive_seed, permutation
from grpo_pl.prompts.prompt_set import iteration_prompts
from grpo_pl.rewards.base import Verifier, score_samples
from grpo_pl.rewards.patterns import compiled
from grpo_pl.rewards.steps import step_ends
from grpo_pl.system.refusal import ConfigError
from grpo_pl.types import Prompt, Rollout, Sample

Row = dict[str, Any]
CHUNK = 32
"""Prompts that the engine gets at once."""


def make(options: argparse.Namespace, for_fit: list[str]) -> list[Row]:
    """The rows that the options of `reward-data` ask for, sampled by the config of `for_fit`."""
    trainer, model, data = of_policy(configure(for_fit))
    if data.environment is not None:
        raise ConfigError(
            "data.environment plays episodes, and reward-data knows single answers alone: set it to null"
        )
    name = options.verifier or next(iter(model.verifiers), "")
    if name not in model.verifiers:
        raise ConfigError(
            f"reward-data: --verifier={name}: model.verifiers has {', '.join(model.verifiers) or 'none'}"
        )
    verifier, rows = model.verifiers[name], []
    if options.samples:
        rows = make_pairs(recorded(options.samples), verifier, options.pairs_per_prompt)
    else:
        for rollout in rollouts(trainer, data, options.prompts):
            if options.kind == "pairs":
                rows += make_pairs(rollout.samples, verifier, options.pairs_per_prompt)
            else:
                rows += label_steps(rollout, data, verifier, options.steps, options.continuations)
    if not rows:
        what = "both a right and a wrong response" if options.kind == "pairs" else "a response to judge"
        raise ConfigError(
            f"reward-data: no prompt had {what}: raise --prompts or data.group_size, or take another policy"
        )
    return rows


def rollouts(trainer: pl.Trainer, data: RolloutDataModule, num_prompts: int) -> Iterator[Rollout]:
    """Groups of responses to the training prompts, as the first iterations of a run sample them."""
    prompts = data.read_prompts("train", data.train)
    limits = CHUNK * data.group_size, 2 * data.sampling.max_tokens  # a prefix and its continuation
    with started(trainer, data, limits) as engine:
        for i in track(range(-(-num_prompts // CHUNK)), description="sampling"):
            chunk = iteration_prompts(prompts, iteration=i, prompts_per_iteration=CHUNK, seed=data.seed)
            yield engine.generate(chunk[: num_prompts - i * CHUNK], data.group_size, data.sampling)


def recorded(path: Path) -> list[Sample]:
    """The responses of a run's `samples.jsonl`."""
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [
            Sample(
                prompt=Prompt(
                    token_ids=[], text=row["prompt"], answer=row["answer"], messages=row.get("messages", [])
                ),
                response=row["response"],
                response_tokens=row["response_tokens"],
                truncated=row["truncated"],
            )
            for row in rows
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"reward-data: --samples={path} is not a samples.jsonl of a run ({type(error).__name__}: {error})"
        ) from error


def verdicts(verifier: Verifier, samples: Sequence[Sample]) -> Sequence[float | None]:
    """The verifier's score of each response; None where it gives none."""
    return score_samples({"verifier": verifier}, samples).by_name["verifier"]


def conversation(prompt: Prompt) -> str | list[dict[str, str]]:
    """A prompt as files hold it: its text, or the whole conversation where it has more messages."""
    return prompt.messages if len(prompt.messages) > 1 else prompt.text


def key_of(prompt: str | list[dict[str, str]]) -> str:
    """Tells a prompt from others: two conversations may end with the same message."""
    return prompt if isinstance(prompt, str) else json.dumps(prompt)


def make_pairs(samples: Sequence[Sample], verifier: Verifier, most: int) -> list[Row]:
    """For each prompt, up to `most` pairs of a right and a wrong response, no two pairs alike."""
    by_prompt: dict[tuple[str, str], tuple[Prompt, dict[str, float]]] = {}
    for sample, score in zip(samples, verdicts(verifier, samples), strict=True):
        if score is not None:
            key = key_of(conversation(sample.prompt)), sample.prompt.answer
            by_prompt.setdefault(key, (sample.prompt, {}))[1][sample.response] = score
    rows = []
    for (asked, answer), (prompt, responses) in by_prompt.items():
        right = [response for response, score in responses.items() if score > 0.5]
        wrong = [response for response, score in responses.items() if score <= 0.5]
        pairs = list(product(right, wrong))
        for i in permutation(len(pairs), derive_seed("pairs", asked))[:most]:
            chosen, rejected = pairs[i]
            row = {"prompt": conversation(prompt), "chosen": chosen, "rejected": rejected, "answer": answer}
            rows.append(row)
    return rows


def label_steps(
    rollout: Rollout, data: RolloutDataModule, verifier: Verifier, steps: str, continuations: int
) -> list[Row]:
    """Each distinct response with its steps, labelled by how often the policy gets from them to the answer.

    The label of a step is the share of right answers among `continuations` responses that begin with all
    steps up to it; the last step's is the verifier's score of the response (Math-Shepherd, Wang et al. 2024,
    arXiv:2312.08935, section 3.3, soft estimation).
    """
    separator, samples = compiled("reward-data: --steps", steps), rollout.samples
    final = verdicts(verifier, samples)
    seen: dict[tuple[str, str], int] = {}
    for n, sample in enumerate(samples):
        if final[n] is not None and sample.response.strip():
            seen.setdefault((key_of(conversation(sample.prompt)), sample.response), n)
    prefixes: list[tuple[int, int, Prompt]] = []
    for n in seen.values():
        prompt, response_ids = samples[n].prompt, rollout.token_ids[n][rollout.loss_mask[n]].tolist()
        for end in step_ends(samples[n].response, separator)[:-1]:
            last = bisect_left(samples[n].token_ends, end)
            token_ids = prompt.token_ids + response_ids[: last + 1]
            seed = derive_seed(prompt.seed, "steps", n, end)
            prefixes.append((n, samples[n].token_ends[last], replace(prompt, token_ids=token_ids, seed=seed)))
    labels = continued(prefixes, samples, data, verifier, continuations)
    rows = []
    for n in seen.values():
        ends = step_ends(samples[n].response, separator)
        begins = [0, *ends[:-1]]
        rows.append(
            {
                "prompt": conversation(samples[n].prompt),
                "completions": [samples[n].response[a:b] for a, b in zip(begins, ends, strict=True)],
                "labels": [*labels.get(n, []), final[n]],
                "answer": samples[n].prompt.answer,
            }
        )
    return rows


def continued(
    prefixes: Sequence[tuple[int, int, Prompt]],
    samples: Sequence[Sample],
    data: RolloutDataModule,
    verifier: Verifier,
    continuations: int,
) -> dict[int, list[float]]:
    """Row of a response -> the share of right answers among the continuations of each of its prefixes."""
    labels: dict[int, list[float]] = {}
    if not prefixes:
        return labels
    rollout = data.engine.generate([prefix for _, _, prefix in prefixes], continuations, data.sampling)
    whole = []
    for i, sample in enumerate(rollout.samples):
        n, end, _ = prefixes[i // continuations]
        sample.response = samples[n].response[:end] + sample.response
        whole.append(sample)
    scores = verdicts(verifier, whole)
    for i, (n, _, _) in enumerate(prefixes):
        judged = scores[i * continuations : (i + 1) * continuations]
        labels.setdefault(n, []).append(sum(score or 0.0 for score in judged) / continuations)
    return labels


def write(rows: Sequence[Row], out: Path, val_share: float) -> dict[str, int]:
    """Write OUT/train.jsonl and OUT/val.jsonl; returns how many rows each has."""
    files: dict[str, list[Row]] = {"train": [], "val": []}
    for row in rows:
        held_out = derive_seed("val", key_of(row["prompt"])) % 1000 < round(1000 * val_share)
        files["val" if held_out else "train"].append(row)
    out.mkdir(parents=True, exist_ok=True)
    for name, part in files.items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
        (out / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return {name: len(part) for name, part in files.items()}
