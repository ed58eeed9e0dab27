"""The likelihood of right responses: by hand, over ranks and micro-batches, and by enumeration."""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
from helpers.commands import Fit, Refused
from helpers.exact import F64, close, f64
from helpers.experiences import experience
from helpers.feedbacks import feedback
from helpers.run_results import NO_VALIDATION, column, same, saved
from helpers.thread_ranks import on_ranks
from torch import Tensor

from grpo_pl.losses import PositiveNLL, TokenMean
from grpo_pl.types import Experience, Feedback, TokenScores, only_here

IN_FLOAT32 = 1e-6
MASK = torch.arange(4) < torch.tensor([[3], [1], [2], [4]])
LOGPROBS = f64([[-1, -2, -3, 9], [-4, 9, 9, 9], [-5, -6, 9, 9], [-7, -7, -7, -7]])


def rewarded(rows: Sequence[int] = (0, 1, 2, 3), total: Callable[[Tensor], Tensor] = only_here) -> Feedback:
    """Right, wrong but well formed, right and badly formed, of unknown reward."""
    mask = MASK[list(rows)]
    named = {"correct": f64([2, 0, 2, 2]), "form": f64([0.5, 0.5, -3, 0])}
    scored = torch.tensor([True, True, True, False])
    return feedback(
        torch.zeros(mask.shape), mask, scored=scored[list(rows)], sum_over_ranks=total,
        by_name={name: score[list(rows)] for name, score in named.items()},
        weights={"correct": 2.0, "form": 0.5},
    )  # fmt: skip


def prepared(term: PositiveNLL, batch: Experience, given: Feedback) -> Experience:
    return replace(batch, prepared=term.prepare(batch, given, 0))


@pytest.mark.parametrize(
    ("by", "above", "right"),
    [
        (None, 0.0, [True, True, False, False]),  # sums 2.5, 0.5, -1
        (None, 1.0, [True, False, False, False]),
        ("correct", 0.0, [True, False, True, False]),
        ("correct", 1.0, [False] * 4),  # 1 without its weight, and not above 1
        ("form", 0.5, [True, True, False, False]),
    ],
)
def test_a_response_is_right_by_its_reward(by: str | None, above: float, right: list[bool]) -> None:
    assert PositiveNLL(by=by, above=above).right(rewarded()).tolist() == right


def test_the_mean_over_tokens_is_that_over_the_tokens_of_right_responses() -> None:
    term = PositiveNLL(0.1, by="correct")
    batch = prepared(term, experience(MASK), rewarded())
    logprobs = LOGPROBS.clone().requires_grad_()
    loss, metrics = term.term(TokenScores(logprobs=logprobs), batch)
    share = TokenMean()(loss, batch)
    close(share.detach(), 0.1 * (1 + 2 + 3 + 5 + 6) / 5, IN_FLOAT32)
    (gradient,) = torch.autograd.grad(share, logprobs)
    close(gradient, [[-0.02] * 3 + [0], [0] * 4, [-0.02] * 2 + [0] * 2, [0] * 4], IN_FLOAT32)
    close(torch.where(MASK, metrics["train/positive_nll"], 0.0).sum() / 10, 17 / 5, IN_FLOAT32)


def test_where_nothing_is_right_there_is_no_term() -> None:
    term = PositiveNLL(by="correct", above=5.0)
    batch = prepared(term, experience(MASK), rewarded())
    loss, metrics = term.term(TokenScores(logprobs=LOGPROBS), batch)
    assert not loss.any()
    assert metrics == {}  # what was not measured is not 0


def test_tokens_that_a_mask_leaves_out_are_not_counted() -> None:
    term = PositiveNLL(1.0, by="correct")
    kept = torch.ones_like(MASK)
    kept[0, 2] = False
    batch = replace(experience(MASK), kept=kept)
    batch = replace(prepared(term, batch, rewarded()), num_tokens=9)
    close(
        TokenMean()(term.term(TokenScores(logprobs=LOGPROBS), batch).loss, batch),
        (1 + 2 + 5 + 6) / 4,
        IN_FLOAT32,
    )


def test_masks_do_not_move_the_logged_mean_over_the_tokens_of_right_responses() -> None:
    """It is a mean over the 10 tokens that are read, of which the mask keeps 5."""
    term = PositiveNLL(1.0, by="correct")
    kept = torch.tensor([[True, True, False, True], [True] * 4, [True] * 4, [False] * 4])
    batch = prepared(term, replace(experience(MASK), kept=kept), rewarded())
    metrics = term.term(TokenScores(logprobs=LOGPROBS), batch).metrics
    mean = torch.where(MASK, metrics["train/positive_nll"], 0.0).sum() / MASK.sum()
    close(mean, (1 + 2 + 5 + 6) / 4, IN_FLOAT32)


def test_ranks_and_micro_batches_add_up_to_the_whole() -> None:
    term = PositiveNLL(0.1, by="correct")
    whole = prepared(term, experience(MASK), rewarded())
    loss = term.term(TokenScores(logprobs=LOGPROBS), whole).loss
    rows = ([2, 1], [0], [3])

    def of_rank(rank: int, total: Callable[[Tensor], Tensor]) -> Tensor:
        piece = experience(MASK).select(rows[rank], num_tokens=10)
        piece = prepared(term, piece, rewarded(rows[rank], total))
        logprobs = LOGPROBS[rows[rank], : piece.loss_mask.shape[1]]
        return TokenMean()(term.term(TokenScores(logprobs=logprobs), piece).loss, piece)

    close(sum(on_ranks(3, of_rank)), TokenMean()(loss, whole), IN_FLOAT32)
    pieces = [whole.select(some, num_tokens=10) for some in rows]
    shares = [
        TokenMean()(
            term.term(TokenScores(logprobs=LOGPROBS[some, : piece.loss_mask.shape[1]]), piece).loss, piece
        )
        for some, piece in zip(rows, pieces, strict=True)
    ]
    close(sum(shares), TokenMean()(loss, whole), IN_FLOAT32)


def test_on_policy_the_expected_gradient_is_that_of_the_probability_to_be_right() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(4, 3, dtype=F64, generator=generator, requires_grad=True)
    table = logits.log_softmax(-1)  # a row for the empty prefix, and one for each first token
    first, second = torch.cartesian_prod(torch.arange(3), torch.arange(3)).T
    logp = torch.stack([table[0, first], table[1 + first, second]], -1)
    right = torch.tensor([1, 0, 0, 1, 1, 0, 0, 0, 1], dtype=torch.bool)
    probability = logp.sum(-1).exp()
    chance = probability[right].sum()
    nll = (probability.detach() * right * -logp.sum(-1)).sum()
    (ours,) = torch.autograd.grad(nll, logits, retain_graph=True)
    (exact,) = torch.autograd.grad(-chance, logits, retain_graph=True)
    close(ours, exact)
    (of_log,) = torch.autograd.grad(-chance.log(), logits)
    close(ours / chance.detach(), of_log)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PositiveNLL(-0.1), r"^coefficient=-0\.1: expected 0 or more"),
        (lambda: PositiveNLL(above=math.inf), r"^above=inf: expected a finite number"),
    ],
)
def test_a_bad_argument_is_refused(build: Callable[[], PositiveNLL], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


TERM = ("--model.terms.positive", "PositiveNLL")


def test_a_reward_that_does_not_exist_is_refused(fit: Fit, refused: Refused) -> None:
    sentence = refused(fit, *TERM, "--model.terms.positive.by", "rigth")
    assert "model.terms.positive.by=rigth is no reward with a weight: set it to null, or to digit" in sentence


def test_without_a_reward_nothing_says_what_is_right(fit: Fit, refused: Refused) -> None:
    taught = ("--model.advantage", "Distillation", "--model.rewards", '{"*": null}')
    sentence = refused(fit, *TERM, *taught)
    assert "model.terms.positive asks the rewards which responses are right, and none has" in sentence


def test_groups_that_are_right_throughout_are_learned_from(fit: Fit) -> None:
    always = json.dumps({"digit": {"class_path": "Format", "init_args": {"pattern": "(.|\\n)*"}}})
    one = ("--trainer.max_epochs", 1, "--model.rewards", always, "--model.kl", "null", *NO_VALIDATION)
    silent, learned = fit(*one), fit(*one, *TERM)
    assert column(silent, "rollout/groups_without_signal") == [1.0]
    assert column(learned, "train/positive_nll")[0] > 0
    assert not same(saved(silent)["state_dict"], saved(learned)["state_dict"])
