"""Experiences as losses get them."""

import torch
from helpers.exact import F64
from torch import Tensor

from grpo_pl.functional import prompt_weights
from grpo_pl.types import Experience


def experience(mask: Tensor, **columns: Tensor | int | None) -> Experience:
    """An experience whose other columns are zero, of one optimizer step that it fills alone."""
    zeros = torch.zeros(mask.shape, dtype=F64)
    one_prompt = prompt_weights(mask.sum(-1), torch.zeros(len(mask), dtype=torch.int64), lambda x: x)
    given_columns = {
        "sampling_logprobs": zeros, "old_logprobs": zeros, "advantages": zeros, "prompt_weights": one_prompt,
        "num_tokens": int(mask.sum()), "num_sequences": len(mask), "all_sequences": len(mask),
    } | columns  # fmt: skip
    return Experience(
        token_ids=torch.zeros(mask.shape, dtype=torch.int64), loss_mask=mask, temperature=1.0,
        **given_columns,
    )  # fmt: skip
