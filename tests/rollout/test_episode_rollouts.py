"""Rollouts of episodes keep what describes them, through everything that cuts, merges and stores rollouts."""

import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.episode_rows import FORKED, OBSERVED, assert_same, episode, rollout

from grpo_pl.rewards.base import score_samples
from grpo_pl.rewards.environment import EnvironmentReward
from grpo_pl.rollout.assembly import with_prompts, without_prompts
from grpo_pl.rollout.dynamic_sampling import groups_where, replace_group
from grpo_pl.rollout.engine import SamplingConfig
from grpo_pl.rollout.parquet import save_rollout
from grpo_pl.rollout.replay import ReplayEngine
from grpo_pl.rollout.shared import part
from grpo_pl.rollout.stored import read, write
from grpo_pl.types import Prompt, Rollout, StepScore

PROMPTS = [
    Prompt(token_ids=[5, 6], text="?", answer="", seed=17),
    Prompt(token_ids=[7], text="!", answer="", seed=18),
]


def two_groups(forks: str, base: int = 0) -> Rollout:
    """Two episodes for each prompt, of 2, 1, 3 and 1 turns; `forks` has an f for each that is forked."""
    b = base
    episodes = [
        episode(0, [5, 6], [[10 + b, 11], [12, 13, 14]], [0.5, -1.0], forks=forks[0] == "f"),
        episode(1, [5, 6], [[15 + b]], [0.25], forks=forks[1] == "f", stop="turns"),
        episode(2, [7], [[16, 17], [18 + b], [19, 20]], [0.0, 1.0, 2.0], forks=forks[2] == "f"),
        episode(3, [7], [[21 + b, 22, 23]], [0.0], forks=forks[3] == "f", stop="crash", outcome="abstain"),
    ]
    return rollout(PROMPTS, [row for rows in episodes for row in rows])


def test_an_episode_is_one_row_with_observations_that_nobody_sampled() -> None:
    one = two_groups("----")
    assert one.token_ids[0].tolist() == [5, 6, 10, 11, OBSERVED, 12, 13, 14]
    assert one.loss_mask[0].tolist() == [False, False, True, True, False, True, True, True]
    assert one.turns is not None
    assert one.turns[2].tolist() == [0, 1, 1, 0, 2, 0, 3, 3]
    assert one.lengths == [8, 3, 8, 4]
    assert one.tokens_generated == 5 + 1 + 5 + 3
    assert one.episodes is None
    first = one.samples[0]
    # 10 is k, and 11, 14 end their turns: the texts are "k" and "mn"
    assert (first.response, first.token_ends, first.response_tokens) == ("k\nmn", [1, 1, 3, 4, 4], 5)
    assert first.turns == [StepScore(1, 0.5, 1), StepScore(4, -1.0, 4)]
    assert (first.stop, first.outcome, first.transcript[0]["content"]) == ("done", "score", "episode 0")
    assert [sample.stop for sample in one.samples] == ["done", "turns", "done", "crash"]


def test_a_forked_episode_is_the_same_sample_as_one_that_is_not() -> None:
    forked, whole = two_groups("f-f-"), two_groups("----")
    assert forked.token_ids[1].tolist()[:7] == [FORKED, 5, 6, 10, 11, OBSERVED, 12]
    assert forked.loss_mask.sum(-1).tolist() == [2, 3, 1, 2, 1, 2, 3]
    assert forked.group_ids.tolist() == [0, 0, 0, 1, 1, 1, 1]
    assert forked.firsts == [0, 2, 3, 6]
    assert forked.tokens_generated == whole.tokens_generated
    for ours, theirs in zip(forked.samples, whole.samples, strict=True):
        assert ours == theirs
        assert ours.tokens is not None
        assert theirs.tokens is not None
        assert ours.tokens[0][ours.tokens[1]].tolist() == theirs.tokens[0][theirs.tokens[1]].tolist()


@pytest.mark.parametrize("forks", ["----", "f-f-"])
def test_files_and_processes_give_a_rollout_back_to_the_bit(tmp_path: Path, forks: str) -> None:
    one = two_groups(forks)
    sent = pickle.loads(pickle.dumps(without_prompts(one)))
    assert_same(with_prompts(PROMPTS, sent), one)
    write(one, tmp_path / "one.rollout")
    content = read(tmp_path / "one.rollout")
    assert content is not None
    assert_same(with_prompts(PROMPTS, content), one)
    save_rollout(one, tmp_path / "one.parquet")
    engine = ReplayEngine(str(tmp_path / "one.parquet"))
    engine.start(max_sequence_tokens=16, max_sequences=4, device=torch.device("cpu"))
    again = engine.generate(PROMPTS, 2, SamplingConfig(max_tokens=3))
    assert_same(again, replace(one, offline=True))
    smaller = engine.generate(PROMPTS, 1, SamplingConfig(max_tokens=3))
    assert smaller.samples == [one.samples[0], one.samples[2]], "the first episodes, with all of their rows"
    with pytest.raises(ValueError, match=r"has 2 responses at temperature 1\.0"):
        engine.check(PROMPTS, 3, SamplingConfig(max_tokens=3))
    with pytest.raises(ValueError, match=r"has a response of 3 tokens.*max_tokens is 2: set that to 3"):
        engine.generate(PROMPTS, 2, SamplingConfig(max_tokens=2))


def test_a_prompt_that_the_environment_has_opened_comes_back_with_its_rollout(tmp_path: Path) -> None:
    one = two_groups("f---")
    words = {"token_ids": [5, 6, 8], "text": "Guess!", "messages": [{"role": "user", "content": "Guess!"}]}
    one.prompts[1] = replace(PROMPTS[0], **words)
    write(one, tmp_path / "one.rollout")
    content = read(tmp_path / "one.rollout")
    assert content is not None
    for back in (with_prompts(PROMPTS, content), with_prompts(PROMPTS, without_prompts(one))):
        assert_same(back, one)
        assert back.prompts[0] is PROMPTS[0], "others are those that were asked"


def test_an_episode_that_the_environment_has_opened_is_replayed_for_the_prompt_that_was_asked(
    tmp_path: Path,
) -> None:
    one = two_groups("----")
    for n in (0, 1):
        said = one.transcripts[n] = [*one.transcripts[0], {"role": "assistant", "content": "k"}]
        words = {"token_ids": [5, 6, 8], "text": "episode 0", "messages": said[:1]}
        one.prompts[n] = replace(PROMPTS[0], asked=[5, 6], **words)
    save_rollout(one, tmp_path / "one.parquet")
    engine = ReplayEngine(str(tmp_path / "one.parquet"))
    engine.start(max_sequence_tokens=16, max_sequences=4, device=torch.device("cpu"))
    again = engine.generate(PROMPTS, 2, SamplingConfig(max_tokens=3))
    assert_same(again, replace(one, offline=True))
    assert again.prompts[0].asked == [5, 6]
    with pytest.raises(ValueError, match=r"has 0 responses at temperature 1\.0"):
        engine.generate([replace(PROMPTS[0], token_ids=[5])], 2, SamplingConfig(max_tokens=3))


@pytest.mark.parametrize("forks", ["----", "f-f-"])
def test_a_part_has_all_columns_of_its_rows(forks: str) -> None:
    second = part(two_groups(forks), 1, 1)
    assert second.prompts[0] is PROMPTS[1]
    assert second.samples == two_groups(forks).samples[2:]
    assert set(second.group_ids.tolist()) == {0}
    assert second.turns is not None
    assert second.turns.shape == second.token_ids.shape
    assert len(second.stops) == len(second.transcripts) == len(second.prompts)


@pytest.mark.parametrize(
    ("ours", "theirs"), [("----", "----"), ("f-f-", "----"), ("----", "f-f-"), ("ffff", "f-f-")]
)
def test_a_replaced_group_brings_its_episodes_and_their_scores(ours: str, theirs: str) -> None:
    rewards = {"env": EnvironmentReward()}
    one, other = two_groups(ours), two_groups(theirs, base=40)
    one, other = (replace(x, rewards=score_samples(rewards, x.samples)) for x in (one, other))
    mixed = replace_group(one, 0, other, 1)
    expected = [*other.samples[2:], *one.samples[2:]]
    assert mixed.samples == expected
    assert mixed.group_ids[mixed.firsts].tolist() == [0, 0, 1, 1]
    assert mixed.rewards is not None
    assert mixed.rewards.total.tolist() == [3.0, 0.0, 3.0, 0.0]
    assert mixed.rewards.scored.tolist() == [True, False, True, False]
    assert mixed.rewards.steps[0] == other.samples[2].turns
    assert [len(column) for column in mixed.columns.values()] == [len(mixed.prompts)] * len(mixed.columns)
    of_each = lambda x: torch.tensor([sample.stop == "crash" for sample in x.samples])  # noqa: E731
    assert groups_where(mixed, of_each, signal=True) == [0, 1]
    assert groups_where(one, of_each, signal=False) == [0]
