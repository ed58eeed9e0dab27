"""A further term of the loss is a class and one line of a config."""

import logging

import pytest
from helpers.commands import Fit, Refused, Stopped
from helpers.run_results import NO_VALIDATION, column, same, saved

from grpo_pl.losses import Reinforce
from grpo_pl.losses.objective import all_terms

ONE = ("--trainer.max_epochs", 1, "--gradient_terms.every", 1, *NO_VALIDATION)
PULL = ("--model.terms.pull", "helpers.own_term.Pull")


def test_a_term_of_ones_own_is_learned_from_logged_and_measured_as_the_others_are(fit: Fit) -> None:
    without, nothing, pulled = (
        fit(*ONE, *more) for more in ((), (*PULL, "--model.terms.pull.coefficient", 0), PULL)
    )
    assert same(saved(without)["state_dict"], saved(nothing)["state_dict"])
    assert not same(saved(without)["state_dict"], saved(pulled)["state_dict"])
    assert column(pulled, "train/pull")[0] > 0
    assert column(pulled, "gradient/pull_norm")[0] > 0
    assert column(pulled, "gradient/pull_policy_cosine")[0] != 0


def test_a_term_that_is_not_finite_is_named_with_its_own_advice(fit: Fit, stopped: Stopped) -> None:
    broken = ("--model.terms.pull", "helpers.own_term.Broken", "--guard.max_skipped_steps", 1)
    sentence = stopped(fit, *ONE, *broken)
    assert "not finite: the pull (" in sentence
    assert "Try a lower model.terms.pull.coefficient." in sentence


@pytest.mark.parametrize("name", ["kl", "policy", "value", "entropy", "no word"])
def test_a_term_cannot_have_the_name_of_another(name: str) -> None:
    with pytest.raises(ValueError, match=f"^terms: '{name}' cannot be the name of a further term"):
        all_terms({name: Reinforce()}, policy=Reinforce(), kl=None, entropy=None, value=None)


def test_a_term_that_does_not_exist_is_refused_in_one_sentence(fit: Fit, refused: Refused) -> None:
    assert "model.terms.pull" in refused(fit, "--model.terms.pull", "helpers.own_term.Pul")


def test_a_term_that_does_not_describe_itself_is_named_all_the_same(
    fit: Fit, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        fit(*ONE, "--model.terms.mine", "helpers.own_term.Plain", "--data.minibatches", 1)
    assert "not finite: the term mine (" in caplog.text
