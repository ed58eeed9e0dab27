"""SkyRL: its functions are imported and called; its losses are sums over tokens, ours are means."""

from types import SimpleNamespace
from typing import Any

import torch
from harness import USUAL, Entry, Outputs, differentiate, stub
from parity_batches import Batch
from torch import Tensor

from grpo_pl.functional import outcome_rewards

stub(
    "ray",
    "loguru",
    "omegaconf",
    "skyrl.train",
    "skyrl.tinker",
    "skyrl.backends.backend",
    "skyrl.backends.skyrl_train.utils.io",
    "skyrl_gym",
)

from skyrl.backends.skyrl_train.utils import off_policy_correction_utils, ppo_utils  # noqa: E402

UTILS = "skyrl.backends.skyrl_train.utils"
PATH = f"{UTILS}.ppo_utils"
NO_CORRECTION = SimpleNamespace(
    tis_ratio_type=None,
    sequence_mask_metric=None,
    outlier_token_is_threshold_low=None,
    outlier_token_is_threshold_high=None,
    token_mask_is_threshold_low=None,
    token_mask_is_threshold_high=None,
)


def policy(
    function: str, section: str, batches: tuple[str, ...], *, value: bool = True, **options: Any
) -> Entry:
    """A policy loss as a mean over tokens; without its value where ours has another of the same gradient."""

    def run(batch: Batch) -> Outputs:
        config = SimpleNamespace(off_policy_correction=NO_CORRECTION, **{section: SimpleNamespace(**options)})

        def loss(logprobs: Tensor) -> Tensor:
            total = getattr(ppo_utils, function)(
                logprobs,
                batch["old_logprobs"],
                batch["advantages"],
                config,
                batch["mask"].double(),
                batch["sampling_logprobs"],
            )[0]
            return total / batch["mask"].sum()

        got = differentiate(loss, batch["logprobs"])
        return got if value else {"gradient": got["gradient"]}

    return Entry(f"{PATH}:{function}", "imported", run, options, batches)


def advantage(function: str, **parameters: Any) -> Entry:
    """An estimator of `ppo_utils`, which reads the rewards of tokens."""

    def run(batch: Batch) -> Outputs:
        mask = batch["mask"].double()
        rewards, ids = outcome_rewards(batch["rewards"], batch["mask"]), batch["group_ids"].numpy()
        return {"advantages": getattr(ppo_utils, function)(rewards, mask, ids, **parameters)[0]}

    return Entry(f"{UTILS}.ppo_utils:{function}", "imported", run, parameters, USUAL)


def mask(function: str, *more: str, **options: float) -> Entry:
    """What a mask of the off-policy correction leaves of the response."""

    def run(batch: Batch) -> Outputs:
        mask, config = batch["mask"].double(), SimpleNamespace(**options)
        columns = batch["old_logprobs"], batch["sampling_logprobs"], mask
        found, _ = getattr(off_policy_correction_utils, function)(*columns, *more, config)
        return {"kept": mask * found.to(torch.float64)}

    return Entry(f"{UTILS}.off_policy_correction_utils:{function}", "imported", run, options, USUAL)


ENTRIES = {
    "dppo_tv": policy(
        "dppo_policy_loss", "dppo", ("proper",),
        value=False, dppo_type="binary_tv", delta_low=0.2, delta_high=0.2,
    ),
    "dppo_kl": policy(
        "dppo_policy_loss", "dppo", ("proper",),
        value=False, dppo_type="binary_kl", delta_low=0.05, delta_high=0.05,
    ),
    "kl_cov": policy(
        "compute_policy_loss_kl_cov", "kl_cov", ("near",), kl_cov_frac=0.2, ppo_kl_coef=1.0
    ),
    "max_rl": advantage("compute_maxrl_advantage"),
    "reject_geometric": mask("compute_sequence_mask", "geometric", geo_mask_low=0.8, geo_mask_high=1.4),
    "reject_product": mask("compute_sequence_mask", "product", product_mask_low=0.5, product_mask_high=4.0),
    "reject_any_token": mask(
        "compute_outlier_token_mask", outlier_token_is_threshold_low=0.3, outlier_token_is_threshold_high=9.0
    ),
    "reject_token": mask(
        "compute_token_mask", token_mask_is_threshold_low=0.5, token_mask_is_threshold_high=2.0
    ),
}  # fmt: skip
