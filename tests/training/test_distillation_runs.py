"""Runs that a teacher teaches: with rewards and without, in one process and in several, whole and resumed."""

from pathlib import Path
from statistics import fmean

import pytest
from helpers.commands import Fit, OverARun, Refused
from helpers.refusals import cases
from helpers.run_results import NO_VALIDATION, column, saved, strategy, untimed

from grpo_pl.commands.tiny_model import make_tiny_model

NO_REWARD = ("--model.rewards", '{"*": null}')
ADVANTAGE = ("--model.kl", "null", "--model.advantage", "Distillation", *NO_REWARD)
WHOLE = ("--model.kl", "TeacherKL", *NO_REWARD)
TOP = (*WHOLE, "--model.kl.top_k", "8")
WAYS = {"advantage": ADVANTAGE, "whole vocabulary": WHOLE, "top k": TOP}
ONE_UPDATE = ("--data.minibatches", "1")
FSDP1_ON_A_CPU = ("--trainer.strategy.class_path", "helpers.cpu_fsdp.CPUFSDPStrategy")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of another size, with the student's tokenizer."""
    return make_tiny_model(tmp_path_factory.mktemp("teacher") / "model", key_value_heads=2, seed=3)


def distance(folder: Path) -> list[float]:
    """KL(policy || teacher) in nats a token, in each iteration."""
    return column(folder, "rollout/teacher_kl") or column(folder, "train/kl")


@pytest.mark.parametrize("way", WAYS)
def test_without_any_reward_a_student_comes_near_its_teacher(fit: Fit, teacher: Path, way: str) -> None:
    taught = (*WAYS[way], "--model.reference.pretrained", teacher, "--model.optimizer.lr", "0.01")
    much = ("--data.prompts_per_iteration", "8", "--trainer.max_epochs", "8")
    folder = fit(*taught, *much, *ONE_UPDATE, *NO_VALIDATION)
    nats = distance(folder)
    assert fmean(nats[-3:]) < fmean(nats[:3]) - 0.15
    assert min(column(folder, "train/grad_norm")) > 0
    assert not column(folder, "rollout/reward_std")  # of no reward there is no mean, and no alarm
    assert max(column(folder, "alarm/no_signal")) == 0


def test_a_student_and_a_teacher_that_read_trees_learn_what_padded_ones_do(fit: Fit, teacher: Path) -> None:
    given = (*WHOLE, "--model.reference.pretrained", teacher, *NO_VALIDATION)
    rows = ("--model.policy.attention", "sdpa", "--model.reference.attention", "sdpa")
    padded, trees = (distance(fit(*given, *how)) for how in (rows, ()))
    assert trees == pytest.approx(padded, rel=1e-4)


@pytest.mark.parametrize("how", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp2"])
@pytest.mark.parametrize("way", cases(WAYS, "whole vocabulary"))
def test_two_ranks_learn_from_a_teacher_what_one_does(fit: Fit, teacher: Path, way: str, how: str) -> None:
    given = (*WAYS[way], *ONE_UPDATE, "--model.reference.pretrained", teacher, "--trainer.max_epochs", "3")
    one = fit(*given, "--trainer.accumulate_grad_batches", "2")
    two = fit(*given, *strategy(how), "--trainer.accumulate_grad_batches", "1", ranks=2)
    for here, there in zip(untimed(one), untimed(two), strict=True):
        assert here == pytest.approx(there, abs=1e-4, rel=1e-4)


def test_shards_of_fsdp1_cannot_teach_over_the_whole_vocabulary(refused: Refused, fit: Fit) -> None:
    sentence = refused(fit, *WHOLE, *FSDP1_ON_A_CPU, "--trainer.devices", "1")
    assert "cannot read a reference that FSDPStrategy divides: set trainer.strategy to fsdp2, or" in sentence


@pytest.mark.parametrize("way", cases(WAYS, "top k"))
def test_a_resumed_run_learns_from_its_teacher_as_if_never_stopped(fit: Fit, teacher: Path, way: str) -> None:
    given = (*WAYS[way], "--model.reference.pretrained", teacher, *NO_VALIDATION, "--trainer.max_epochs")
    whole, part = fit(*given, "3"), fit(*given, "2")
    fit(*given, "3", "--ckpt_path", "last", root=part)
    assert untimed(whole) == untimed(part)
    assert not any(name.startswith("reference.") for name in saved(whole)["state_dict"])


def test_adapters_are_taught_and_the_policy_without_them_can_teach(fit: Fit, teacher: Path) -> None:
    adapters = ("--model.policy", "LoRA", "--model.policy.r", "4", "--model.optimizer.lr", "0.01")
    taught = fit(*WHOLE, *adapters, "--model.reference.pretrained", teacher, *NO_VALIDATION)
    first, *_, last = distance(taught)
    assert last < first
    held = fit(
        "--model.kl", "TeacherKL", *adapters, "--model.reference", "AdapterOff", *ONE_UPDATE, *NO_VALIDATION
    )
    first, *others = distance(held)
    assert first == pytest.approx(0.0, abs=1e-5)  # an adapter starts at zero
    assert min(others) > 1e-5


def test_the_teacher_can_follow_the_student(fit: Fit) -> None:
    moved = fit(*ADVANTAGE[:4], "--model.reference_update", "EMA", "--model.reference_update.decay", "0.5")
    assert any(name.startswith("reference.") for name in saved(moved)["state_dict"])


def test_a_teacher_of_another_size_cannot_follow(fit: Fit, refused: Refused, teacher: Path) -> None:
    moved = ("--model.reference_update", "EMA", "--model.reference_update.decay", "0.5")
    sentence = refused(fit, *moved, "--model.reference.pretrained", teacher)
    assert (
        "model.reference_update cannot move a model.reference of other shapes than the policy's" in sentence
    )


def test_groups_without_rewards_have_a_signal_from_the_teacher(fit: Fit, teacher: Path) -> None:
    given = (*ADVANTAGE, "--model.reference.pretrained", teacher)
    folder = fit(*given, "--trainer.max_epochs", "1", *NO_VALIDATION)
    assert column(folder, "rollout/groups_without_signal") == [0.0]


def test_a_run_with_nothing_to_learn_from_is_refused(over_a_run: OverARun, refused: Refused) -> None:
    nothing = "--model.rewards '{\"*\": null}'"
    assert "model.rewards has no reward with a weight other than 0" in refused(over_a_run, nothing)
    base = f"{nothing} --model.advantage Distillation --model.advantage.base GroupRelative"
    assert "model.rewards has no reward with a weight other than 0" in refused(over_a_run, base)


def test_a_teacher_must_be_named(over_a_run: OverARun, refused: Refused) -> None:
    arguments = "--model.kl null --model.advantage Distillation --model.reference null"
    assert "model.advantage needs a reference: set model.reference" in refused(over_a_run, arguments)


def test_more_top_tokens_than_the_vocabulary_has_are_refused(over_a_run: OverARun, refused: Refused) -> None:
    arguments = "--model.kl TeacherKL --model.kl.top_k 321"
    assert "model.kl.top_k=321: the reference has 320 tokens" in refused(over_a_run, arguments)


PART = {
    "top p": (
        "--data.sampling.top_p 0.9",
        "data.sampling.top_p=0.9 and data.sampling.top_k=0 let",
    ),
    "top k": ("--data.sampling.top_k 9", "data.sampling.top_p=1 and data.sampling.top_k=9 let the policy"),
    "centering": (
        "--model.loss Reinforce --model.terms.c ScoreCentering --data.sampling.top_logprobs 8",
        "data.sampling.top_logprobs=8 has the policy score the sampler's likeliest tokens and model.kl",
    ),
}


@pytest.mark.parametrize("top_k", ["null", "4"])
@pytest.mark.parametrize("what", PART)
def test_a_teacher_over_the_vocabulary_is_refused_where_the_policy_is_scored_among_other_tokens(
    over_a_run: OverARun, refused: Refused, what: str, top_k: str
) -> None:
    arguments, sentence = PART[what]
    taught = f"--model.kl TeacherKL --model.kl.top_k {top_k} {arguments}"
    assert sentence in refused(over_a_run, taught)
