"""`filter-prompts` keeps the prompts whose pass rate in kept rollouts lies in a range."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import Fit, Refused, command
from helpers.episode_rows import episode, rollout
from helpers.prompt_sets import Numbered, answered, records
from helpers.questions import write
from helpers.repository import ROOT
from helpers.run_results import NO_VALIDATION

from grpo_pl.commands.filter_prompts import choose, options, read_rates
from grpo_pl.commands.filter_prompts import write as write_prompts
from grpo_pl.prompts import JSONL, Right
from grpo_pl.prompts.fingerprint import fingerprint
from grpo_pl.rollout.parquet import save_rollout
from grpo_pl.types import Prompt

ROWS = [
    {"asked": f"What is {n} + {n}?", "solution": 2 * n, "level": n, "notes": {"a": [n, None]}}
    for n in range(8)
]


def kept(folder: Path) -> list[Path]:
    """Four prompts: right in 0, 1, 2 and 2 of 2 responses by `a`, in 2, 2, 1 and 0 by `b`; one is unknown."""
    rollout = answered(Numbered(4).rows, 2)
    a, b = (0, 0, 0, 1, 1, 1, 1, 1), (1, 1, 1, 1, 0, 1, 0, None)
    given = [{"a": float(x), "b": y if y is None else float(y)} for x, y in zip(a, b, strict=True)]
    greedy = replace(answered(Numbered(5).rows[4:]), temperature=0.0)
    save_rollout(replace(rollout, besides=[greedy]), folder / "iteration-0001.parquet", 1, records(given))
    return [folder / "iteration-0001.parquet"]


def test_rates_are_of_sampled_responses_with_a_reward(tmp_path: Path) -> None:
    files = kept(tmp_path)
    assert read_rates(files, Right(by="a")) == {(0,): (2, 0), (1,): (2, 1), (2,): (2, 2), (3,): (2, 2)}
    assert read_rates(files * 2, Right(by="b")) == {(0,): (4, 4), (1,): (4, 4), (2,): (4, 2), (3,): (2, 0)}
    with pytest.raises(ValueError, match=r"^data.pass_rates.by=c: .* has no such reward, but a, b: name one"):
        read_rates(files, Right(by="c"))


def test_episodes_count_once_and_by_what_the_data_asked(tmp_path: Path) -> None:
    """Three of two turns; the first is forked into two rows, and the environment has opened all anew."""
    rows = [row for n in range(3) for row in episode(n, [9], [[10], [11]], [0.0, 1.0], forks=n == 0)]
    one = rollout([Prompt(token_ids=[5, 6], text="?", answer="")], rows)
    one.prompts = [replace(prompt, token_ids=[9], asked=[5, 6]) for prompt in one.prompts]
    path = tmp_path / "iteration-0001.parquet"
    save_rollout(one, path, 1, records([{"game": reward} for reward in (1.0, 0.0, 0.0)]))
    assert read_rates([path], Right()) == {(5, 6): (3, 1)}


@pytest.mark.parametrize(
    ("arguments", "left", "counted"),
    [
        ([], [1], {"easy": 2, "hard": 1, "unseen": 1}),
        (["--low", "0", "--high", "0.5"], [0, 1], {"easy": 2, "hard": 0, "unseen": 1}),
        (["--unseen", "keep", "--high", "1"], [1, 2, 3, 4], {"easy": 0, "hard": 1, "unseen": 0}),
    ],
)
def test_both_ends_are_in_the_range(
    tmp_path: Path, arguments: list[str], left: list[int], counted: dict[str, int]
) -> None:
    own = options().parse_args([str(tmp_path), str(tmp_path / "out.jsonl"), *arguments])
    chosen, others = choose(Numbered(5).rows, read_rates(kept(tmp_path), Right(by="a")), own)
    assert [prompt.row for prompt in chosen] == left
    assert others == counted


def test_a_run_trains_on_what_was_left_with_every_column(
    fit: Fit, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = ("--data.train", "JSONL", "--data.train.path", write(tmp_path / "all.jsonl", *ROWS))
    named = ("--data.train.question", "asked", "--data.train.answer", "solution")
    run = fit(*source, *named, *NO_VALIDATION, "--data.keep_rollouts", "true", "--trainer.max_epochs", "2")
    capsys.readouterr()
    out = tmp_path / "some.jsonl"
    command("filter-prompts", run, out, "--low", "0.2", "--high", "1")
    said = capsys.readouterr().out
    left = [json.loads(line) for line in out.read_text().splitlines()]
    assert 0 < len(left) < 8
    assert f"{out}: {len(left)} of 8 prompts; left out: 0 too easy, {8 - len(left)} too hard, 0 never" in said
    assert f"--data.train JSONL --data.train.path {out} --data.train.answer solution" in said
    levels = [row["level"] for row in left]
    assert left == [
        {"question": row["asked"]} | {k: v for k, v in row.items() if k != "asked"}
        for row in ROWS
        if row["level"] in levels
    ]


def prompts_in(source: JSONL) -> list[Prompt]:
    rows = [source[n] for n in range(len(source))]
    return [
        Prompt(
            token_ids=[n],
            text=row.text,
            answer=row.answer,
            messages=row.messages or [{"role": "user", "content": row.text}],
            gold=row.gold,
            metadata=row.metadata,
        )
        for n, row in enumerate(rows)
    ]


@pytest.mark.parametrize(
    "row",
    [
        {"question": "é?", "answer": "0.10"},
        {"question": "a", "answer": 0.1, "level": None},
        {"question": "a", "answer": 12345678901234567890},
        {"question": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}], "answer": "b"},
    ],
)
def test_what_is_written_is_read_as_the_same_prompt(tmp_path: Path, row: dict[str, Any]) -> None:
    before = prompts_in(JSONL(write(tmp_path / "a.jsonl", row)))
    columns = write_prompts(tmp_path / "b.jsonl", before)
    assert columns == {"question": "question", "answer": "answer"}
    assert fingerprint(prompts_in(JSONL(str(tmp_path / "b.jsonl")))) == fingerprint(before)


def test_names_that_are_taken_are_not_taken_again_and_no_answer_stays_none(tmp_path: Path) -> None:
    row = {"asked": "a", "question": "b", "answer": "c"}
    before = prompts_in(JSONL(write(tmp_path / "a.jsonl", row), question="asked", answer=None))
    columns = write_prompts(tmp_path / "b.jsonl", before)
    assert columns == {"question": "question_", "answer": "null"}
    again = JSONL(str(tmp_path / "b.jsonl"), question="question_", answer=None)
    assert fingerprint(prompts_in(again)) == fingerprint(before)


def test_what_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    prompt = Prompt(token_ids=[1], text="a", answer="b", messages=[{"role": "user", "content": "a"}])
    with pytest.raises(
        ValueError, match=r"^filter-prompts: data.train has a column 'x' that JSON cannot hold"
    ):
        write_prompts(tmp_path / "b.jsonl", [replace(prompt, metadata={"x": object()})])


def test_mistakes_are_refused_with_what_to_do(refused: Refused, tiny_model: Path, tmp_path: Path) -> None:
    tiny = ("--config", ROOT / "configs" / "tiny.yaml", "--pretrained", tiny_model)
    (tmp_path / "empty").mkdir()
    (tmp_path / "kept").mkdir()
    kept(tmp_path / "kept")
    cases = [
        (("empty", "o", *tiny), "empty has no kept rollouts: name the folder of a run"),
        (("kept", "o", "--low", "0.9", "--high", "0.1", *tiny), "--low=0.9: expected 0 <= low <= high <= 1"),
        (("kept", "no/o", *tiny), "no/o cannot be written: name a file in a folder that exists"),
        (("kept", "o"), "there is no config.yaml at"),
        (("kept", "o", *tiny), "is one of data.train: say the --config that they were sampled with"),
    ]
    for (folder, out, *words), sentence in cases:
        assert sentence in refused(command, "filter-prompts", tmp_path / folder, tmp_path / out, *words)
    assert not (tmp_path / "o").exists()
