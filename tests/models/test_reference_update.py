"""References that follow the policy: by hand, and through an interrupted run."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.commands import Fit, Refused
from helpers.run_results import NO_VALIDATION, column, saved, untimed
from torch import Tensor, nn

from grpo_pl.models import CausalLM, LoRA
from grpo_pl.models.full_weights import full_weights
from grpo_pl.models.reference_update import EMA, EveryN

EVERY = ("--model.reference_update", "EveryN", "--model.reference_update.iterations")
AVERAGE = ("--model.reference_update", "EMA", "--model.reference_update.decay")


def layer(*weight: float) -> nn.Linear:
    linear = nn.Linear(len(weight), 1, bias=False)
    linear.weight.data.copy_(torch.tensor([weight]))
    return linear


def test_every_n_copies_the_policy_every_nth_iteration_and_not_between() -> None:
    reference, policy = layer(1.0, 2.0), layer(3.0, 5.0)
    seen = []
    for iteration in range(1, 5):
        policy.weight.data += 1
        EveryN(2)(reference, full_weights(policy), iteration)
        seen.append(reference.weight.tolist()[0])
    assert seen == [[1.0, 2.0], [5.0, 7.0], [5.0, 7.0], [7.0, 9.0]]


def test_ema_is_the_geometric_series_of_past_policies() -> None:
    reference, policy = layer(8.0), layer(0.0)
    seen = []
    for iteration in range(1, 4):
        EMA(0.5)(reference, full_weights(policy), iteration)
        seen.append(reference.weight.item())
        policy.weight.data += 4
    assert seen == [4.0, 4.0, 6.0]  # 8/2 + 0/2, 4/2 + 4/2, 4/2 + 8/2


def test_weights_are_not_gathered_where_nothing_moves() -> None:
    def gather() -> Iterator[tuple[str, Tensor]]:
        raise AssertionError("gathering is collective, and costs time")
        yield

    EveryN(2)(layer(1.0), gather(), 1)


def test_a_copy_follows_an_adapted_policy_by_its_merged_weights(tiny_model: Path) -> None:
    policy, reference = LoRA(str(tiny_model), r=2).build(), CausalLM(str(tiny_model)).build()
    for name, parameter in policy.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    tokens = torch.randint(3, 300, (2, 8))
    mask = torch.arange(8).expand(2, 8) > 2
    with torch.no_grad():
        said = policy(tokens, mask, 1.0).logprobs
        assert (reference(tokens, mask, 1.0).logprobs - said).abs().max() > 1e-3
        EveryN(1)(reference.language_model, full_weights(policy.language_model), 1)
        assert torch.allclose(reference(tokens, mask, 1.0).logprobs, said, atol=1e-5)


def test_a_reference_replaced_each_iteration_is_the_policy_that_sampled(fit: Fit) -> None:
    """With one update a rollout, its KL is 0; that it stands in the checkpoint shows it moves before."""
    moved = fit("--data.minibatches", "1", *EVERY, "1", *NO_VALIDATION)
    stayed = fit("--data.minibatches", "1", *NO_VALIDATION)
    assert column(moved, "train/kl") == [0.0, 0.0, 0.0]
    assert min(column(stayed, "train/kl")[1:]) > 0
    held = saved(moved)["state_dict"]
    references = [name for name in held if name.startswith("reference.")]
    assert len(references) == len(held) / 2
    for name in references:
        assert torch.equal(held[name], held[name.replace("reference.", "policy.")]), name
    assert not any(name.startswith("reference.") for name in saved(stayed)["state_dict"])


@pytest.mark.parametrize("update", [(*EVERY, "2"), (*AVERAGE, "0.5")], ids=["EveryN", "EMA"])
def test_a_resumed_run_has_the_reference_of_one_never_stopped(fit: Fit, update: tuple[str, ...]) -> None:
    whole = fit("--trainer.max_epochs", "4", *update, *NO_VALIDATION)
    part = fit("--trainer.max_epochs", "3", *update, *NO_VALIDATION)
    fit("--trainer.max_epochs", "4", "--ckpt_path", "last", *update, *NO_VALIDATION, root=part)
    assert untimed(whole) == untimed(part)
    held, again = saved(whole)["state_dict"], saved(part)["state_dict"]
    assert any(name.startswith("reference.") for name in held)
    assert all(torch.equal(tensor, again[name]) for name, tensor in held.items())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((*EVERY, "0"), "model.reference_update.iterations=0: expected 1 or more"),
        ((*AVERAGE, "1.0"), "model.reference_update.decay=1.0: expected a number in [0, 1)"),
        ((*EVERY, "1", "--model.kl", "null"), "nothing compares with"),
        ((*AVERAGE, "0.9", "--model.reference.dtype", "bfloat16"), "set it to float32"),
        (
            (*AVERAGE, "0.9", "--model.policy", "LoRA", "--model.reference", "AdapterOff"),
            "set model.reference to CausalLM",
        ),
        (("--model.reference", "ValueHead"), "model.reference builds no language model"),
    ],
)
def test_a_reference_that_cannot_move_is_refused_in_one_sentence(
    fit: Fit, refused: Refused, arguments: tuple[str, ...], sentence: str
) -> None:
    assert sentence in refused(fit, *arguments, *NO_VALIDATION)
