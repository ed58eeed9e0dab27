"""The gradient of each term: by hand, what it adds up to, and that nobody notices the measurement."""

import math
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from helpers.commands import Fit, Refused
from helpers.run_results import NO_VALIDATION, column, rows, same, saved, untimed
from torch import Tensor, nn

from grpo_pl.callbacks.gradient_terms import PREFIX, HasObjective, measure
from grpo_pl.losses import ClippedValueLoss, Reinforce, TokenMean
from grpo_pl.losses.entropy import EntropyBonus
from grpo_pl.losses.kl import KLInLoss
from grpo_pl.losses.objective import Objective
from grpo_pl.types import Experience, TokenScores

ALL_ON_THE_POLICY = (
    *("--model.advantage", "GAE", "--model.critic", "TrunkValueHead", "--model.critic.detach", "false"),
    *("--model.entropy", "EntropyBonus", "--model.entropy.coefficient", "0.1"),
)
"""Four terms, all with a gradient on the policy's parameters."""
EVERY_SECOND = ("--gradient_terms.every", "2")


def batch(old_logprobs: list[list[float]], **columns: Tensor) -> Experience:
    old = torch.tensor(old_logprobs)
    everywhere = torch.ones(old.shape, dtype=torch.bool)
    given = {"advantages": torch.zeros(old.shape), "num_tokens": old.numel()} | columns
    return Experience(
        token_ids=torch.zeros(old.shape, dtype=torch.int64), loss_mask=everywhere, sampling_logprobs=old,
        old_logprobs=old, temperature=1.0, **given,
    )  # fmt: skip


# ------------------------------------------------------------------------------------------- gradient terms


class FourNumbers:
    """A policy of two numbers, the log-probabilities of two tokens, and a critic of two, their values."""

    objective = Objective(
        {
            "policy": Reinforce(),
            "kl": KLInLoss(1.0, "k2"),
            "entropy": EntropyBonus(4.0),
            "value": ClippedValueLoss(),
        },
        TokenMean(),
    )

    def __init__(self) -> None:
        self.logprobs, self.values = (nn.Parameter(torch.zeros(1, 2)) for _ in range(2))

    def scores(self, _: Experience) -> TokenScores:
        """The first token's entropy is its log-probability; that of the second does not depend on it."""
        entropy = self.logprobs * torch.tensor([[1.0, 0.0]])
        return TokenScores(logprobs=self.logprobs, entropy=entropy, values=self.values)

    def parameter_groups(self) -> dict[str, list[nn.Parameter]]:
        return {"policy": [self.logprobs], "critic": [self.values]}


def test_norms_shares_and_cosines_by_hand() -> None:
    """Policy (-3, 4), KL (0, 2), entropy (-2, 0) add up to (-5, 6); value (2, 0) on the critic."""
    module = FourNumbers()
    assert isinstance(module, HasObjective)
    step = [  # each of two micro-batches gives half: d/dlogprobs = -A / 4 tokens, and so on
        batch(
            [[0.0, 0.0]],
            advantages=torch.tensor([[6.0, -8.0]]),
            ref_logprobs=torch.tensor([[0.0, -4.0]]),
            returns=torch.tensor([[-8.0, 0.0]]),
            old_values=torch.zeros(1, 2),
            num_tokens=4,
        )
        for _ in range(2)
    ]
    for part in step:
        module.objective(module.scores(part), part).total.backward()
    whole = module.logprobs.grad, module.values.grad
    trainer = pl.Trainer(accelerator="cpu", devices=1, logger=False, enable_checkpointing=False)
    found = measure(trainer, module, step)
    assert whole[0].tolist() == [[-5.0, 6.0]]
    assert module.logprobs.grad is whole[0]
    assert module.values.grad is whole[1]
    norm = math.sqrt(61)
    assert found == pytest.approx(
        {
            "norm": norm,
            "policy_norm": 5.0, "policy_share": 5 / norm, "policy_cosine": 39 / (5 * norm),
            "kl_norm": 2.0, "kl_share": 2 / norm, "kl_cosine": 12 / (2 * norm), "kl_policy_cosine": 8 / 10,
            "entropy_norm": 2.0, "entropy_share": 2 / norm, "entropy_cosine": 10 / (2 * norm),
            "entropy_policy_cosine": 6 / 10,
            "value_critic_norm": 2.0,
        }
    )  # fmt: skip


@pytest.mark.parametrize(("precision", "tolerance"), [("32-true", 1e-5), ("bf16-mixed", 0.02)])
def test_terms_add_up_to_the_gradient_and_measuring_them_changes_no_bit(
    fit: Fit, precision: str, tolerance: float
) -> None:
    """One optimizer step an iteration, of two micro-batches; the second iteration alone is measured."""
    how = ("--trainer.precision", precision, "--data.minibatches", 1, *ALL_ON_THE_POLICY, *NO_VALIDATION)
    plain, measured = fit(*how), fit(*how, *EVERY_SECOND)
    here = [{k: v for k, v in row.items() if k.startswith(PREFIX)} for row in rows(measured)]
    assert [bool(found) for found in here] == [False, False, True, False]
    terms = ("policy", "kl", "entropy", "value")
    along = sum(here[2][f"gradient/{term}_share"] * here[2][f"gradient/{term}_cosine"] for term in terms)
    assert along == pytest.approx(1, rel=tolerance)
    assert here[2]["gradient/norm"] == pytest.approx(rows(measured)[2]["train/grad_norm"], rel=1e-5)
    critic = rows(measured)[2]["train/critic_grad_norm"]
    assert here[2]["gradient/value_critic_norm"] == pytest.approx(critic, rel=tolerance)
    unmeasured = [{k: v for k, v in row.items() if not k.startswith(PREFIX)} for row in untimed(measured)]
    assert unmeasured == untimed(plain)
    assert same(saved(measured)["state_dict"], saved(plain)["state_dict"])
    assert same(saved(measured)["optimizer_states"], saved(plain)["optimizer_states"])


def test_a_step_that_is_not_taken_is_not_measured(fit: Fit) -> None:
    once = ("--data.minibatches", 1, "--gradient_terms.every", 1, "--samples.every", 0, *NO_VALIDATION)
    folder = fit("--data.engine", "helpers.faults.NaNEngine", "--data.engine.versions", [1], *once)
    assert column(folder, "train/skipped_steps") == [0, 1, 0]
    assert ["gradient/norm" in row for row in rows(folder)] == [False, True, False, True]


def test_what_cannot_be_measured_is_refused_before_there_is_a_folder(
    fit: Fit, refused: Refused, tmp_path: Path
) -> None:
    root = ("--trainer.default_root_dir", tmp_path / "run")
    flat = ("--trainer.strategy.class_path", "helpers.cpu_fsdp.CPUFSDPStrategy")
    sentence = refused(fit, *root, *flat, *EVERY_SECOND)
    assert "gradient_terms.every=2 cannot be measured with trainer.strategy CPUFSDPStrategy" in sentence
    assert "gradient_terms.every=0: expected 1 or more" in refused(fit, *root, "--gradient_terms.every", 0)
    assert not (tmp_path / "run").exists()
