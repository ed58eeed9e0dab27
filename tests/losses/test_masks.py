"""Which tokens are learned from."""

import math

import pytest
import torch
from helpers.commands import Fit
from helpers.exact import F64, few
from helpers.feedbacks import feedback
from hypothesis import given
from hypothesis import strategies as st

from grpo_pl.losses.masks import TokenMask, TopEntropy, WithoutTruncated
from grpo_pl.runs.layout import read_metrics

SHORT = ("--trainer.max_epochs", "1", "--trainer.limit_val_batches", "0")
MASK = torch.tensor([[False, True, True, True], [False, True, True, False]])
NOTHING = torch.zeros(2, 4)


def test_truncated_responses_are_left_out_whole() -> None:
    first_cut = feedback(NOTHING, MASK, truncated=torch.tensor([True, False]))
    kept = WithoutTruncated()(first_cut, NOTHING)
    assert kept.tolist() == [[False] * 4, [True] * 4]


def test_where_every_response_is_truncated_nothing_is_learned(fit: Fit) -> None:
    folder = fit("--model.kl", "null", "--model.masks", "[WithoutTruncated]", *SHORT)
    row = read_metrics(folder / "metrics.csv")[1]
    assert row["rollout/truncated"] == 1.0
    assert row["train/grad_norm"] == 0.0


@pytest.mark.parametrize(
    ("share", "kept"),
    [
        (0.2, [[0, 0, 1, 0], [0, 0, 0, 0]]),
        (0.21, [[0, 0, 1, 0], [0, 0, 1, 0]]),  # more than one token of five is two
        (0.6, [[0, 1, 1, 0], [0, 0, 1, 0]]),
        (1.0, [[0, 1, 1, 1], [0, 1, 1, 0]]),
        (1e-9, [[0, 0, 1, 0], [0, 0, 0, 0]]),
    ],
)
def test_the_most_undecided_tokens_are_kept_and_prompts_and_padding_do_not_count(
    share: float, kept: list[list[int]]
) -> None:
    entropy = torch.tensor([[9.0, 0.3, 0.5, 0.0], [9.0, 0.1, 0.4, 9.0]])
    assert (TopEntropy(share)(feedback(NOTHING, MASK), entropy) & MASK).int().tolist() == kept


@pytest.mark.parametrize("tokens", [1, 7, 100, 300])
def test_the_share_is_the_decimal_that_is_written_and_not_its_binary_rounding(tokens: int) -> None:
    entropy, mask = torch.arange(1 + tokens)[None].double(), torch.arange(1 + tokens)[None] > 0
    given_all = feedback(torch.zeros(mask.shape), mask)
    kept = [int((TopEntropy(share / 1000)(given_all, entropy) & mask).sum()) for share in range(1, 1001)]
    assert kept == [-(-share * tokens // 1000) for share in range(1, 1001)]


def test_seven_hundredths_of_a_hundred_tokens_are_seven() -> None:
    entropy, mask = torch.arange(101)[None].double(), torch.arange(101)[None] > 0
    assert int((TopEntropy(0.07)(feedback(torch.zeros(mask.shape), mask), entropy) & mask).sum()) == 7


def test_tokens_at_the_threshold_are_kept_together() -> None:
    entropy = torch.tensor([[0.0, 0.7, 0.7, 0.2], [0.0, 0.7, 0.1, 0.0]])
    assert int((TopEntropy(0.2)(feedback(NOTHING, MASK), entropy) & MASK).sum()) == 3


@few
@given(st.integers(1, 60), st.integers(1, 100), st.integers(0, 9))
def test_the_share_is_kept_to_the_token_and_every_kept_one_is_above_every_other(
    tokens: int, percent: int, seed: int
) -> None:
    entropy = torch.rand(1, 1 + tokens, generator=torch.Generator().manual_seed(seed), dtype=F64)
    mask = torch.arange(1 + tokens)[None] > 0
    kept = TopEntropy(percent / 100)(feedback(torch.zeros(mask.shape), mask), entropy) & mask
    assert int(kept.sum()) == -(-percent * tokens // 100)  # rounded up, in whole numbers
    assert entropy[kept].min() >= entropy[mask & ~kept].max() if (mask & ~kept).any() else kept[mask].all()


def test_silent_responses_are_scored_for_a_mask_that_needs_their_entropy(fit: Fit) -> None:
    """Without a KL silent responses are read by no pass; their entropy of 0 would be no measurement."""
    half = ("--model.masks", "[{class_path: TopEntropy, init_args: {share: 0.5}}]")
    with_kl, without = (
        read_metrics(fit(*arguments, *half, *SHORT) / "metrics.csv")[1]
        for arguments in (("--model.kl.coefficient", "0.0"), ("--model.kl", "null"))
    )
    assert without["rollout/groups_without_signal"] > 0
    for name in ("train/grad_norm", "train/entropy"):
        assert without[name] == pytest.approx(with_kl[name], rel=1e-4), name


def test_masks_are_intersected(fit: Fit) -> None:
    both = ("--model.masks", "[{class_path: TopEntropy, init_args: {share: 0.5}}, WithoutTruncated]")
    assert read_metrics(fit(*both, *SHORT) / "metrics.csv")[1]["train/grad_norm"] == 0.0


@pytest.mark.parametrize("share", [0.0, 1.01, -0.2, math.nan])
def test_a_share_outside_0_and_1_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match=r"^share=.*: expected a number above 0 and at most 1"):
        TopEntropy(share)


def test_only_masks_that_look_at_the_entropy_ask_for_it() -> None:
    assert {mask.__name__: mask.needs_entropy for mask in TokenMask.__subclasses__()} == {
        "WithoutTruncated": False,
        "TopEntropy": True,
    }
