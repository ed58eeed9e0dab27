"""SkyRL: its policy losses are imported and called; its losses are sums over tokens, ours are means."""

from types import SimpleNamespace
from typing import Any

from harness import Entry, Outputs, differentiate, stub
from parity_batches import Batch
from torch import Tensor

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

from skyrl.backends.skyrl_train.utils import ppo_utils  # noqa: E402

PATH = "skyrl.backends.skyrl_train.utils.ppo_utils"
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
}  # fmt: skip
