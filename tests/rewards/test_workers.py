import math
from functools import partial

import pytest
from helpers import worker_calls as calls
from jsonargparse import ArgumentParser

from grpo_pl.rewards.base import RewardError, RewardFunction, score_samples
from grpo_pl.rewards.feedback import reward_metrics
from grpo_pl.rewards.pool import Workers
from grpo_pl.rewards.rules import WorkerFunction
from grpo_pl.rewards.workers import WorkerReward
from grpo_pl.types import Prompt, Sample

CALLS = {
    "two": partial(calls.double, 1.0),
    "hang": partial(calls.hang),
    "crash": partial(calls.kill_myself),
    "fail": partial(calls.fail, "no such luck"),
    "text": partial(calls.double, "1"),
    "nan": partial(calls.double, math.nan),
    "none": partial(calls.nothing),
    "abstain": None,
}


class Scripted(WorkerReward):
    """Looks its calls up by response."""

    def call(self, sample: Sample) -> partial | None:
        return CALLS[sample.response]


def sample(response: str, **metadata: object) -> Sample:
    prompt = Prompt(token_ids=[1], text="question", answer="5", metadata=metadata)
    return Sample(prompt=prompt, response=response, response_tokens=1, truncated=False)


def by_name(responses: str, reward: WorkerReward) -> list[float | None]:
    return score_samples({"mine": reward}, [sample(text) for text in responses.split()]).by_name["mine"]


@pytest.mark.parametrize(
    ("declared", "scores"),
    [
        ({}, [2.0, 0.0, 0.0, 2.0]),
        ({"on_timeout": -1.0, "on_crash": -2.0}, [2.0, -1.0, -2.0, 2.0]),
        ({"on_timeout": "abstain", "on_crash": "abstain"}, [2.0, None, None, 2.0]),
    ],
)
def test_a_sample_that_timed_out_or_crashed_gets_the_declared_score_and_is_counted(declared, scores):
    reward = Scripted(workers=Workers(timeout_s=0.5, **declared))
    samples = [sample(text) for text in ("two", "hang", "crash", "two")]
    for _ in range(2):
        scored = score_samples({"mine": reward}, samples)
        assert scored.by_name["mine"] == scores
        assert scored.scored.tolist() == [score is not None for score in scores]
        metrics = reward_metrics(scored)
        assert (metrics["rewards/mine_timeouts"], metrics["rewards/mine_crashes"]) == (0.25, 0.25)


def test_a_call_may_abstain_and_so_may_the_reward_without_one():
    assert by_name("two none abstain two", Scripted()) == [2.0, None, None, 2.0]
    assert by_name("abstain", Scripted()) == [None]


def test_failures_make_one_warning_that_shows_the_first(caplog):
    by_name("two hang crash", Scripted(workers=Workers(timeout_s=0.5)))
    [record] = caplog.records
    assert record.message == (
        "2 of 3 samples failed in a worker: timeout (prompt 'question', answer '5', response 'hang')"
    )


def test_an_error_abstains_or_stops_the_run_as_on_error_says(caplog):
    assert by_name("two fail", Scripted(on_error="abstain")) == [2.0, None]
    assert "ZeroDivisionError: no such luck" in caplog.text
    with pytest.raises(RewardError, match=r"ZeroDivisionError: no such luck \(prompt 'question'"):
        by_name("two fail", Scripted())


@pytest.mark.parametrize("bad", ["text", "nan"])
def test_what_is_no_finite_number_is_refused(bad):
    with pytest.raises(RewardError, match="Reward 'mine' failed"):
        by_name(f"two {bad}", Scripted())
    assert by_name(f"two {bad}", Scripted(on_error="abstain")) == [2.0, None]


def test_a_function_of_the_user_runs_in_workers():
    reward = WorkerFunction(calls.plus_metadata)
    assert reward.score([sample("abc", more=1.5)]) == [len("question") + 3 + 1 + 1.5]


def test_a_function_that_a_worker_could_not_import_is_refused():
    with pytest.raises(ValueError, match="function cannot be sent to a worker"):
        WorkerFunction(lambda **_: 1.0)


def test_all_settings_of_workers_are_options():
    parser = ArgumentParser()
    parser.add_argument("--reward", type=RewardFunction)
    chosen = ["--reward=WorkerFunction", "--reward.function=helpers.worker_calls.plus_metadata"]
    limits = {
        "processes": 3,
        "timeout_s": 7,
        "memory_gib": 2,
        "retries": 1,
        "on_timeout": "abstain",
        "on_crash": -1,
    }
    given = [f"--reward.workers.{key}={value}" for key, value in limits.items()]
    reward = parser.instantiate_classes(parser.parse_args([*chosen, *given])).reward
    assert reward.workers == Workers(3, 7.0, 2.0, 1, "abstain", -1.0)
