"""Rows and episodes by hand."""

import torch

from grpo_pl.functional import EpisodeTokens
from grpo_pl.types import TokenScores

MASK = torch.tensor([[0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 1, 1]]).bool()
ROWS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8], [9, 10, 11, 12]])
TOKENS = EpisodeTokens(MASK, torch.tensor([7, 3, 7]))


def test_the_sampled_tokens_of_an_episode_stand_side_by_side_in_the_order_of_its_rows() -> None:
    assert TOKENS.together(ROWS).tolist() == [[2, 3, 11, 12], [6, 0, 0, 0]]
    assert TOKENS.together(MASK).tolist() == [[True] * 4, [True, False, False, False]]
    assert TOKENS.together(torch.tensor([70, 30, 70])).tolist() == [70, 30]
    wide = TOKENS.together(torch.stack([ROWS, -ROWS], -1))
    assert wide[0, 2].tolist() == [11, -11]


def test_the_way_back_puts_every_token_where_it_was_sampled() -> None:
    assert TOKENS.apart(TOKENS.together(ROWS)).tolist() == (ROWS * MASK).tolist()
    assert TOKENS.apart(torch.tensor([1.5, 2.5])).tolist() == [1.5, 2.5, 1.5]


def test_every_tensor_of_a_dataclass_is_moved_and_nothing_else() -> None:
    scores = TokenScores(logprobs=ROWS.float())
    together = TOKENS.together(scores)
    assert together.logprobs.tolist() == [[2, 3, 11, 12], [6, 0, 0, 0]]
    assert together.values is None
    assert TOKENS.apart({"a": together.logprobs, "b": 3})["b"] == 3


def test_without_episodes_nothing_moves() -> None:
    same = EpisodeTokens(MASK, None)
    assert same.together(ROWS) is ROWS
    assert same.apart(ROWS) is ROWS
