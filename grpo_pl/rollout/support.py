"""The tokens that truncated sampling (top-p, top-k) chooses from: the support of each sampled token.

The sampler draws token t from a set S_t of likely tokens, with probability p(v) / sum_{u in S_t} p(u). The
rollout keeps S_t, and every model scores the token among S_t alone: mask replay, DeepSeek-V3.2, section 3.1,
arXiv:2512.02556. So the first ratio is 1, and the gradient is that of the expected reward of the policy that
chooses from these sets, which are held fixed. Log-probabilities over the whole vocabulary would be off by the
log of the kept mass at every token. A KL with a reference compares two distributions over S_t: it says
nothing of the tokens outside.
"""

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

NONE = -1
"""Stands where a token has fewer candidates than others."""


def kept_tokens(logits: Float[Tensor, "N V"], top_p: float, top_k: int) -> Bool[Tensor, "N V"]:
    """True on the tokens that can be drawn: at least one of each row.

    Top-k first, with all that tie with the last; then the fewest likeliest of these whose share of their mass
    reaches `top_p`. vLLM and transformers take the same order.
    """
    kept = torch.ones_like(logits, dtype=torch.bool)
    if top_k:
        kept = logits >= logits.topk(min(top_k, logits.shape[-1])).values[:, -1:]
    if top_p < 1:
        shares, order = logits.masked_fill(~kept, -torch.inf).softmax(-1).sort(-1, descending=True)
        before = shares.cumsum(-1) - shares
        kept = kept & torch.zeros_like(kept).scatter(-1, order, before < top_p)
    return kept


def tokens_of(kept: Bool[Tensor, "V"]) -> Int[Tensor, "K"]:
    """The ids of the kept tokens of one row, as a rollout keeps them."""
    return kept.nonzero()[:, 0].int()


def lay_out_support(
    supports: list[list[Int[Tensor, "_"]]], mask: Bool[Tensor, "N T"]
) -> Int[Tensor, "N T K"]:
    """The supports of all sampled tokens in their places; -1 where there are fewer."""
    padded = pad_sequence(
        [support for row in supports for support in row], batch_first=True, padding_value=NONE
    )
    out = torch.full((*mask.shape, padded.shape[1]), NONE, dtype=torch.int32)
    out[mask] = padded
    return out


def supports_of(candidates: Int[Tensor, "L K"]) -> list[Int[Tensor, "_"]]:
    """The supports of the tokens of one response, without padding."""
    return [row[row != NONE] for row in candidates]


def widened(x: Shaped[Tensor, "N T K"], width: int, most: int) -> Shaped[Tensor, "N W M"]:
    """The same with room for longer sequences and more tokens at each; ids are -1 there, other numbers 0."""
    fill = 0 if x.is_floating_point() else NONE
    return torch.nn.functional.pad(x, (0, most - x.shape[2], 0, width - x.shape[1]), value=fill)


def support_bytes(sampling_top_k: int, vocabulary: int, tokens: int) -> int:
    """Memory of the supports of a rollout's tokens: at most, for `top_p` alone bounds no number of tokens."""
    return 4 * tokens * (sampling_top_k or vocabulary)
