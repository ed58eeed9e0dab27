"""The mathematics of the loop as pure functions of tensors, without models and engines."""

from grpo_pl.functional.divergences import forward_kl, generalized_jsd, reverse_kl, with_rest
from grpo_pl.functional.episodes import EpisodeTokens
from grpo_pl.functional.groups import (
    group_is_constant,
    group_mean,
    group_normalize,
    group_size,
    group_std,
    groups_with,
    max_at_k_gains,
    others_mean,
    others_std,
    prompt_weights,
)
from grpo_pl.functional.partition import balanced_partition, batches_within, even_parts, pad_rows, rounds
from grpo_pl.functional.ratios import MAX_LOG_RATIO, bounded_exp, importance_ratio, kl_k1, kl_k2, kl_k3
from grpo_pl.functional.returns import generalized_advantages, outcome_rewards
from grpo_pl.functional.seeds import derive_seed, drawn_by_size, permutation, ratio_sample
from grpo_pl.functional.selection import largest
from grpo_pl.functional.statistics import divide_by_std, masked_mean, mean_and_std, one_if_finite, whiten
from grpo_pl.functional.success_rates import majority_at_k, pass_at_k, wilson_interval

__all__ = [
    "MAX_LOG_RATIO",
    "EpisodeTokens",
    "balanced_partition",
    "batches_within",
    "bounded_exp",
    "derive_seed",
    "divide_by_std",
    "drawn_by_size",
    "even_parts",
    "forward_kl",
    "generalized_advantages",
    "generalized_jsd",
    "group_is_constant",
    "group_mean",
    "group_normalize",
    "group_size",
    "group_std",
    "groups_with",
    "importance_ratio",
    "kl_k1",
    "kl_k2",
    "kl_k3",
    "largest",
    "majority_at_k",
    "masked_mean",
    "max_at_k_gains",
    "mean_and_std",
    "one_if_finite",
    "others_mean",
    "others_std",
    "outcome_rewards",
    "pad_rows",
    "pass_at_k",
    "permutation",
    "prompt_weights",
    "ratio_sample",
    "reverse_kl",
    "rounds",
    "whiten",
    "wilson_interval",
    "with_rest",
]
