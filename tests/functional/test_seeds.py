"""Randomness as a counter."""

from collections import Counter

import torch
from helpers.exact import few
from hypothesis import given
from hypothesis import strategies as st

from grpo_pl.functional import derive_seed, permutation


def test_derive_seed_never_changes_from_one_release_to_the_next() -> None:
    # blake2b-64 of "(17, 'update', 3)", read little-endian, without its lowest bit
    assert derive_seed(17, "update", 3) == 2674847994683189782


def test_derive_seed_depends_on_every_part_on_their_order_and_on_their_types() -> None:
    calls = [
        (1, 2),
        (2, 1),
        (1,),
        (2,),
        (1, 2, 0),
        (12,),
        (1, "2"),
        ("1", 2),
        ("a", "b"),
        ("ab",),
        ("b", "a"),
    ]
    assert len({derive_seed(*parts) for parts in calls}) == len(calls)


@few
@given(st.lists(st.one_of(st.integers(), st.sampled_from(["", "update", "ü"])), max_size=4))
def test_derive_seed_is_a_seed_that_torch_takes(parts: list[int | str]) -> None:
    seed = derive_seed(*parts)
    assert 0 <= seed < 2**63
    torch.Generator().manual_seed(seed)


def test_derived_seeds_fill_the_whole_range() -> None:
    seeds = [derive_seed("range", i) for i in range(256)]
    assert min(seeds) < 2**63 // 16
    assert max(seeds) > 2**63 - 2**63 // 16
    assert 80 < sum(seed % 2 for seed in seeds) < 176  # odd ones: 128 expected, 8 is one standard deviation


def test_permutation_has_every_row_once_and_is_a_function_of_its_seed_alone() -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    order = permutation(50, 7)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert permutation(50, 7) == order
    assert permutation(50, 8) != order
    assert sorted(order) == list(range(50))


def test_permutation_gives_each_order_equally_often() -> None:
    counts = Counter(tuple(permutation(3, derive_seed("uniform", i))) for i in range(1200))
    assert len(counts) == 6
    assert all(
        abs(count - 200) < 65 for count in counts.values()
    )  # sqrt(1200 * 1/6 * 5/6) = 13, five times that
