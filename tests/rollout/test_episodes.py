"""Episodes by real engines: exact tokens, the same alone and together, limits and failures."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.engines import mismatch, perturbed, prompts, same_rollout
from helpers.episodes import Chats, Obeys
from helpers.playing import play, talkative

from grpo_pl.models.full_weights import full_weights
from grpo_pl.models.loading import load_tokenizer
from grpo_pl.prompts.chat import ChatFormat
from grpo_pl.rollout.dataset import DatasetEngine
from grpo_pl.rollout.engine import SamplingEngine
from grpo_pl.rollout.environment import EnvironmentEngine, with_environment
from grpo_pl.rollout.in_process import InProcessEngine
from grpo_pl.rollout.limits import Episodes
from grpo_pl.rollout.overlapped import OverlappedEngine
from grpo_pl.rollout.replay import ReplayEngine
from grpo_pl.rollout.server.engine import ServerEngine
from grpo_pl.rollout.vllm import VLLMEngine
from grpo_pl.system.refusal import ArgumentError, ConfigError

CASES = [
    ("InProcessEngine", "tied"),
    pytest.param(("InProcessEngine", "untied"), marks=pytest.mark.slow, id="InProcessEngine-untied"),
    pytest.param(("VLLMEngine", "tied"), marks=pytest.mark.vllm, id="VLLMEngine-tied"),
    pytest.param(
        ("VLLMEngine", "untied"), marks=[pytest.mark.vllm, pytest.mark.slow], id="VLLMEngine-untied"
    ),
]
"""An untied head makes another model, and no other episode: test_engines.py has both."""


@pytest.fixture(scope="module", params=CASES, ids=lambda case: "-".join(case))
def engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SamplingEngine]:
    name, kind = request.param
    plain = request.getfixturevalue("tiny_model" if kind == "tied" else "tiny_untied_model")
    folder = str(talkative(plain, tmp_path_factory.mktemp("models") / "talkative"))
    one = InProcessEngine(folder) if name == "InProcessEngine" else VLLMEngine(folder, "float32", 0.1)
    one.start(max_sequence_tokens=256, max_sequences=64, device=torch.device("cpu"))
    yield one
    one.shutdown()


def test_each_turn_is_sampled_after_the_row_as_it_stands(engine: SamplingEngine) -> None:
    """The trainer's log-probabilities of what was sampled behind observations are the engine's."""
    model = perturbed(Path(engine.pretrained))
    engine.load_weights(full_weights(model.language_model), version=3)
    rollout = play(engine, Chats(), prompts(Path(engine.pretrained)), 4)
    assert mismatch(model, rollout).max() < 1e-4
    assert rollout.policy_version == 3
    assert rollout.turns is not None
    assert int(rollout.turns.max()) == 4
    assert torch.equal(rollout.turns > 0, rollout.loss_mask)
    for row, prompt in zip(rollout.token_ids.tolist(), rollout.prompts, strict=True):
        assert row[: len(prompt.token_ids)] == prompt.token_ids


def test_what_stands_between_turns_is_the_template_s_and_forges_none(engine: SamplingEngine) -> None:
    rollout = play(engine, Chats(), prompts(Path(engine.pretrained)))
    tokenizer = load_tokenizer(engine.pretrained)
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert rollout.turns is not None
    for n, turns in enumerate(rollout.turns.tolist()):
        begin, last = len(rollout.prompts[n].token_ids), max(t for t, turn in enumerate(turns) if turn)
        between = [int(x) for x, turn in zip(rollout.token_ids[n], turns, strict=True) if not turn][begin:]
        between = between[: last + 1 - begin - sum(turn > 0 for turn in turns)]
        assert between.count(start) == 2 * (max(turns) - 1), "the user's header and the policy's"
        said = [m["content"] for m in rollout.transcripts[n] if m["role"] == "user"]
        text = tokenizer.decode(between)
        assert all(content in text for content in said[: max(turns) - 1])


def test_an_episode_is_the_same_alone_and_among_others_however_slow_they_are(engine: SamplingEngine) -> None:
    """64 of them, the delays drawn anew in each rollout."""
    asked = prompts(Path(engine.pretrained), tuple(f"What is {n}?" for n in range(8)))
    quick = play(engine, Chats(), asked, 8)
    slow = play(engine, Chats(delay_s=0.1), asked, 8)
    assert torch.equal(slow.token_ids, quick.token_ids)
    assert slow.stops == quick.stops
    assert same_rollout(slow, quick) or isinstance(engine, InProcessEngine), "it rounds by its batch"
    alone = play(engine, Chats(delay_s=0.05), asked[1:2], 1)
    width = alone.token_ids.shape[1]
    assert torch.equal(alone.token_ids[0], quick.token_ids[8, :width])
    assert torch.equal(alone.turns[0], quick.turns[8, :width])  # type: ignore[index]


@pytest.mark.parametrize(
    ("limits", "stop"),
    [
        ({"turns": 2}, "turns"),
        ({"sampled_tokens": 9}, "sampled_tokens"),
        ({"tokens": 60}, "tokens"),
        ({"seconds": 1e-6}, "seconds"),
    ],
)
def test_a_limit_ends_an_episode_by_its_name(
    engine: SamplingEngine, limits: dict[str, Any], stop: str
) -> None:
    rollout = play(engine, Chats(turns=30), prompts(Path(engine.pretrained)), 4, **limits)
    assert set(rollout.stops) <= {stop, "turn_tokens", "tokens"}
    assert stop in rollout.stops
    assert rollout.truncated.all()
    assert int(rollout.turns.max()) <= limits.get("turns", 30)  # type: ignore[union-attr]
    assert int(rollout.loss_mask.sum(-1).max()) <= limits.get("sampled_tokens", 200)
    for row, prompt in zip(rollout.lengths, rollout.prompts, strict=True):
        assert row - len(prompt.token_ids) <= limits.get("tokens", 200)


def test_a_turn_that_is_cut_is_not_shown_to_the_environment(engine: SamplingEngine) -> None:
    rollout = play(engine, Chats(turns=1), prompts(Path(engine.pretrained)), 4, sampled_tokens=2)
    cut = [stop == "sampled_tokens" for stop in rollout.stops]
    assert 0 < sum(cut) < 12
    assert rollout.stops.count("done") == 12 - sum(cut)
    assert rollout.truncated.tolist() == cut
    answered = [any(m["role"] == "user" for m in transcript) for transcript in rollout.transcripts]
    assert answered == [not it for it in cut]


@pytest.mark.parametrize(("order", "stop"), [("die", "crash"), ("fail", "error"), ("nothing", "error")])
def test_an_environment_that_cannot_open_costs_its_own_episodes(
    engine: SamplingEngine, order: str, stop: str
) -> None:
    asked = prompts(Path(engine.pretrained), (order, "count", order))
    rollout = play(engine, Obeys(), asked)
    assert rollout.stops[:2] == rollout.stops[4:] == [stop] * 2
    assert rollout.outcomes[:2] == ["abstain"] * 2
    assert rollout.stops[2:4] == ["error"] * 2, "it obeys no word of a random model"
    assert [len(transcript) for transcript in rollout.transcripts[:2]] == [1, 1], "the policy's turn"
    assert rollout.loss_mask.sum(-1)[:2].tolist() == [1, 1], "nobody reads it"


def test_the_opening_of_an_environment_is_the_prompt(engine: SamplingEngine) -> None:
    asked = prompts(Path(engine.pretrained), ("count",))
    rollout = play(engine, Obeys(), asked, 3)
    tokenizer = load_tokenizer(engine.pretrained)
    expected = tokenizer.apply_chat_template(
        [{"role": "user", "content": "0"}], add_generation_prompt=True, return_dict=False
    )
    assert [prompt.token_ids for prompt in rollout.prompts] == [expected] * 3
    assert rollout.prompts[0].text == "0"


def test_metrics_say_how_episodes_went(engine: SamplingEngine) -> None:
    rollout = play(engine, Chats(turns=2), prompts(Path(engine.pretrained)), 4)
    shares = {name: share for name, share in rollout.metrics.items() if name.startswith("episodes/ended_")}
    assert sum(shares.values()) == pytest.approx(1)
    assert shares["episodes/ended_done"] == rollout.stops.count("done") / 12
    assert rollout.metrics["episodes/turns"] == pytest.approx(
        float(rollout.turns.amax(-1).float().mean())  # type: ignore[union-attr]
    )
    assert rollout.metrics["episodes/reward"] == pytest.approx(sum(map(sum, rollout.turn_rewards)) / 12)


@pytest.mark.parametrize(
    ("limits", "sentence"),
    [
        ({"turns": 0}, "turns=0: expected 1 or more"),
        ({"calls": -1}, "calls=-1: expected 0 or more"),
        ({"processes": 0}, "processes=0: expected 1 or more"),
        ({"seconds": float("nan")}, "seconds=nan: expected a finite number above 0"),
        ({"timeout_s": 0.0}, "timeout_s=0.0: expected a finite number above 0"),
        ({"memory_gib": float("inf")}, "memory_gib=inf: expected a finite number above 0"),
    ],
)
def test_limits_that_make_no_sense_are_refused(limits: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ArgumentError, match=sentence):
        Episodes(**limits)


def test_only_engines_that_sample_and_files_of_episodes_go_with_an_environment() -> None:
    around = {"environment": Chats(), "limits": Episodes(), "format": ChatFormat(), "max_prompt_tokens": 64}
    ahead = OverlappedEngine(InProcessEngine("model"))
    assert with_environment(ahead, **around) is ahead
    assert isinstance(ahead.engine, EnvironmentEngine)
    assert isinstance(with_environment(ServerEngine(["http://127.0.0.1:9"]), **around), EnvironmentEngine)
    replay = ReplayEngine("folder")
    assert with_environment(replay, **around) is replay, "its files hold whole episodes"
    with pytest.raises(ConfigError, match=r"data\.environment needs an engine that samples, and Dataset"):
        with_environment(DatasetEngine(), **around)
