"""The numbers of an iteration: by hand, over which tokens they are means, and none where none is read."""

from itertools import combinations, permutations

import pytest
import torch
from helpers.experiences import experience
from helpers.feedbacks import feedback, outcomes
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grpo_pl.advantages import GAE
from grpo_pl.functional import drawn_by_size, ratio_sample
from grpo_pl.training.metrics import ReadTokens, explained_variance
from grpo_pl.training.silent_sample import SilentSample
from grpo_pl.types import Experience, Feedback, Sequences, only_here

# ----------------------------------------------------------------------------------------- explained variance


def ignorant(lam: float) -> tuple[Feedback, float]:
    """Every pair of a fair coin and a constant that is independent of it; and what the target would say.

    Responses of 256 tokens. Var(G) = 1/4 and Var(G - V) = 1/4 + 0.07525: the critic explains -0.301.
    """
    coin, guess = [0.0, 0.0, 1.0, 1.0], 0.07525**0.5
    given = outcomes(coin, [0, 0, 0, 0], [256] * 4)
    values = torch.tensor([[0.5 + guess], [0.5 - guess]] * 2).double() * given.loss_mask
    given.values = values
    target = GAE(lam=lam, lam_value=lam, whiten=False)(given).returns
    assert target is not None
    mask = given.loss_mask
    return given, float(1 - (target - values)[mask].var() / target[mask].var())


@pytest.mark.parametrize(("lam", "of_target"), [(0.95, 0.830), (0.99, 0.248), (1.0, -0.301)])
def test_a_critic_that_knows_nothing_explains_nothing_whatever_lambda(lam: float, of_target: float) -> None:
    given, said = ignorant(lam)
    assert said == pytest.approx(of_target, abs=2e-3), "against the target, a small lambda makes it look good"
    assert explained_variance(given, 1.0)["train/explained_variance"] == pytest.approx(-0.301, abs=1e-6)


@pytest.mark.parametrize(
    ("values", "explained"),
    [
        ([1.0, 2.0, 3.0, 6.0], 1.0),
        ([5.0, 5.0, 5.0, 5.0], 0.0),
        ([0.0, 0.0, 0.0, 0.0], 0.0),
        ([-1.0, -2.0, -3.0, -6.0], -3.0),
        ([2.0, 2.0, 2.0, 6.0], 1 - 0.5 / 3.5),
    ],
)
def test_explained_variance_is_that_of_response_tokens(values: list[float], explained: float) -> None:
    """Two responses of two tokens, with other numbers wherever the mask is False."""
    mask = torch.tensor([[False, True, True, False], [False, False, True, True]])

    def masked(numbers: list[float]) -> Tensor:
        return torch.full((2, 4), 99.0).masked_scatter(mask, torch.tensor(numbers))

    # returns 1, 2 and 3, 6: undiscounted, so that what the first token of each earns is the difference
    rewards = masked([-1.0, 2.0, -3.0, 6.0])
    given = feedback(rewards, mask, values=masked(values))
    assert explained_variance(given, 1.0)["train/explained_variance"] == pytest.approx(explained)


def test_the_returns_are_discounted_as_the_estimator_discounts_them() -> None:
    given = outcomes([1.0, 4.0], [0, 0], [3, 2])
    returns = torch.tensor([[0, 0.25, 0.5, 1.0], [0, 2.0, 4.0, 0]])
    given.values = returns.double()
    assert explained_variance(given, 0.5)["train/explained_variance"] == 1
    assert explained_variance(given, 1.0)["train/explained_variance"] < 1


def test_responses_without_a_reward_explain_nothing() -> None:
    """Their return is the value itself: they would count as perfectly explained."""
    given = outcomes([0.0, 1.0, 0.0, 0.0], [0, 0, 0, 0], [2, 2, 2, 2])
    given.values = torch.tensor([[0.9], [0.3], [5.0], [-5.0]]).double() * given.loss_mask
    given.scored = torch.tensor([True, True, False, False])
    # G - V = -0.9 and 0.7: variance 0.64 of 0.25
    assert explained_variance(given, 1.0)["train/explained_variance"] == pytest.approx(1 - 0.64 / 0.25)


@pytest.mark.parametrize("rewards", [[0.1, 0.1, 0.1], [3.0, 3.0, 3.0]])
def test_where_all_returns_are_alike_there_is_nothing_to_explain(rewards: list[float]) -> None:
    given = outcomes(rewards, [0, 0, 0], [3, 1, 7])
    given.values = torch.randn(given.loss_mask.shape).double()
    assert explained_variance(given, 1.0) == {}
    given.scored = torch.zeros(3, dtype=torch.bool)
    assert explained_variance(given, 1.0) == {}


# ------------------------------------------------------------------------------------------ means over tokens


def means(*batches: tuple[dict[str, Tensor], Tensor, Experience]) -> dict[str, float]:
    read = ReadTokens()
    for metrics, logprobs, batch in batches:
        gap = (batch.sampling_logprobs - batch.old_logprobs).abs()
        read.add(metrics | {"sync/logprob_mismatch": gap}, logprobs, batch)
    return {name: float(value) for name, value in read.compute(only_here).items()}


def batch(old_logprobs: list[list[float]], **columns: Tensor) -> Experience:
    old = torch.tensor(old_logprobs)
    everywhere = torch.ones(old.shape, dtype=torch.bool)
    return experience(everywhere, old_logprobs=old, sampling_logprobs=old, advantages=old, **columns)


def test_a_mean_counts_each_read_token_once_however_the_tokens_are_cut() -> None:
    x = torch.tensor([[1.0, 2.0, 6.0]])
    whole = means(({"x": x}, torch.zeros(1, 3), batch([[0.0, 0.0, 0.0]])))
    cut = means(
        ({"x": x[:, :1]}, torch.zeros(1, 1), batch([[0.0]])),
        ({"x": x[:, 1:]}, torch.zeros(1, 2), batch([[0.0, 0.0]])),
    )
    assert whole == cut == {"x": 3.0, "sync/logprob_mismatch": 0.0, "train/effective_sample_size": 1.0}


def test_a_micro_batch_that_nobody_reads_enters_no_mean() -> None:
    nobody = batch([[0.0] * 4], active=torch.zeros(1, dtype=torch.bool))
    some = ({"x": torch.tensor([[2.0]])}, torch.zeros(1, 1), batch([[0.0]]))
    assert means(some, ({"x": torch.full((1, 4), 9.0)}, torch.zeros(1, 4), nobody))["x"] == 2.0


def test_what_nobody_has_read_has_no_mean() -> None:
    nobody = batch([[0.0, 0.0]], active=torch.zeros(1, dtype=torch.bool))
    assert means(({"x": torch.ones(1, 2)}, torch.zeros(1, 2), nobody)) == {}


def test_the_effective_sample_size_by_hand_however_the_tokens_are_cut() -> None:
    """Ratios 1, 2, 4 and 1: (1 + 2 + 4 + 1)^2 / (4 * (1 + 4 + 16 + 1)) = 64 / 88."""
    old = -torch.tensor([[1.0, 2.0, 4.0, 1.0]]).log()
    for cuts in ([4], [1, 3]):
        parts = [({}, torch.zeros(part.shape), batch(part.tolist())) for part in old.split(cuts, 1)]
        assert means(*parts)["train/effective_sample_size"] == pytest.approx(64 / 88)


def test_tokens_that_the_loss_does_not_count_and_that_nobody_reads_are_no_sample() -> None:
    kept = torch.tensor([[True, True, False], [True, True, True]])
    rows = batch([[-1.0, -1.0, -9.0], [-9.0, 0.0, 0.0]], kept=kept, active=kept[:, 2].flip(0))
    assert means(({}, torch.zeros(2, 3), rows))["train/effective_sample_size"] == pytest.approx(1)
    none_counted = batch([[0.0, 0.0]], kept=torch.zeros(1, 2, dtype=torch.bool))
    assert "train/effective_sample_size" not in means(({}, torch.zeros(1, 2), none_counted))


# ------------------------------------------------------------------------------- a sample of silent responses


@pytest.mark.parametrize("count", [1, 2, 3, 4, 9])
def test_over_all_choices_the_mean_is_the_mean_over_all_responses(count: int) -> None:
    """Every choice that can be drawn, with its chance; of unlike length, two of them with signal."""
    lengths, signal = [3, 1, 7, 2, 5, 4], [1, 4]
    mask = torch.arange(8)[None] < torch.tensor(lengths)[:, None]
    x = torch.rand(6, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    silent = [0 if row in signal else length for row, length in enumerate(lengths)]
    logged = []
    for part in range(sum(silent)):
        for order in permutations(range(3)):
            chosen = drawn_by_size(silent, count, part, order)
            assert len(chosen) == min(count, 4)
            active = torch.tensor([row in chosen or row in signal for row in range(6)])
            stands_for = torch.ones(6)
            stands_for[chosen] = sum(silent) / sum(silent[row] for row in chosen)
            logprobs = torch.zeros(6, 8, dtype=torch.float64)
            logged.append(
                means(({"x": x}, logprobs, experience(mask, active=active, stands_for=stands_for)))["x"]
            )
    assert sum(logged) / len(logged) == pytest.approx(float(x[mask].mean()), rel=1e-6)
    if count < 4:
        assert max(logged) - min(logged) > 0.01
        uniform = [float(x[c, :][mask[list(c)]].mean()) for c in combinations([0, 2, 3, 5], count)]
        of_silent = float(x[[0, 2, 3, 5]][mask[[0, 2, 3, 5]]].mean())
        assert abs(sum(uniform) / len(uniform) - of_silent) > 1e-3, "a uniform choice is biased"


@given(st.lists(st.integers(0, 9), max_size=8), st.integers(0, 10), st.integers(0, 2**62))
def test_a_sample_has_as_many_units_as_asked_for_and_is_that_of_its_seed(
    sizes: list[int], count: int, seed: int
) -> None:
    chosen = ratio_sample(sizes, count, seed)
    assert len(set(chosen)) == len(chosen) == min(count, sum(size > 0 for size in sizes))
    assert all(sizes[unit] for unit in chosen)
    assert chosen == ratio_sample(sizes, count, seed)


def rank_sample(count: int, lengths: list[list[int]], active: list[list[bool]]) -> list[tuple[list, list]]:
    """What each rank reads, and how many tokens each stands for; the rows of each rank have these lengths."""
    silent = [
        [0 if on else n for n, on in zip(*both, strict=True)] for both in zip(lengths, active, strict=True)
    ]
    whole = torch.tensor(silent).flatten()
    out = []
    for rank, (own, on) in enumerate(zip(lengths, active, strict=True)):
        mask = torch.arange(9)[None] < torch.tensor(own)[:, None]
        rows = Sequences(token_ids=mask.long(), loss_mask=mask, temperature=1.0, active=torch.tensor(on))
        read, stands_for = SilentSample(count, rank, len(lengths), lambda _: whole)(rows, version=5)
        assert read is not None
        assert stands_for is not None
        out.append((read.tolist(), stands_for.tolist()))
    return out


def test_ranks_choose_together_what_one_rank_would_choose() -> None:
    lengths, active = [[3, 1], [7, 2], [5, 4]], [[False, True], [False, False], [False, False]]
    flat = [length for own in lengths for length in own]
    ((read, stands_for),) = rank_sample(2, [flat], [[on for own in active for on in own]])
    apart = rank_sample(2, lengths, active)
    assert [on for own, _ in apart for on in own] == read
    assert [times for _, own in apart for times in own] == stands_for
    assert sum(read) == 3
    tokens = torch.tensor(flat) * torch.tensor(stands_for) * torch.tensor(read)
    assert float(tokens.sum()) == pytest.approx(22), "together they stand for all tokens"


def test_where_nothing_is_asked_for_or_all_is_read_nothing_changes() -> None:
    mask = torch.ones(2, 3, dtype=torch.bool)
    rows = Sequences(token_ids=mask.long(), loss_mask=mask, temperature=1.0)
    assert SilentSample(4, 0, 1, only_here)(rows, 0) == (None, None)
    rows.active = torch.tensor([True, False])
    assert SilentSample(0, 0, 1, only_here)(rows, 0) == (rows.active, None)
