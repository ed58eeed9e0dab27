"""OpenRLHF: its losses are imported; its advantages stand inside of a method, called with a bare `self`."""

from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from harness import USUAL, Entry, Outputs, differentiate, stub, token_by_token
from parity_batches import Batch, G, N
from torch import Tensor

stub("ray", "deepspeed", "flash_attn", "ring_flash_attn", "pylatexenc", "torchdata")

from openrlhf.models.loss import PolicyLoss, ValueLoss  # noqa: E402
from openrlhf.models.utils import compute_approx_kl  # noqa: E402
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker  # noqa: E402
from openrlhf.trainer.ppo_utils.kl_controller import AdaptiveKLController  # noqa: E402

MAKER = "openrlhf.trainer.ppo_utils.experience_maker:RemoteExperienceMaker.compute_advantages_and_returns"


def advantage(estimator: str, *, kl: float = 0.0, gamma: float = 1.0, lam: float = 1.0) -> Entry:
    """Advantages with a k1 penalty of `kl` in the reward of each token."""

    def run(batch: Batch) -> Outputs:
        args = SimpleNamespace(
            rollout=SimpleNamespace(n_samples_per_prompt=G),
            algo=SimpleNamespace(
                advantage=SimpleNamespace(estimator=estimator, gamma=gamma, lambd=lam, no_std_norm=False)
            ),
            reward=SimpleNamespace(
                clip_range=(-10, 10), overlong_buffer_len=None, stop_properly_penalty_coef=None
            ),
        )
        self = SimpleNamespace(
            strategy=SimpleNamespace(args=args),
            advantage_estimator=estimator,
            kl_ctl=SimpleNamespace(value=kl),
        )
        for method in ("get_advantages_and_returns", "get_cumulative_returns"):
            setattr(self, method, partial(getattr(RemoteExperienceMaker, method), self))
        experience = SimpleNamespace(
            rewards=batch["rewards"],
            index=list(range(N)),
            action_mask=batch["mask"].long(),
            values=batch["old_values"],
            kl=compute_approx_kl(batch["old_logprobs"], batch["ref_logprobs"], kl_estimator="k1"),
            info={},
        )
        RemoteExperienceMaker.compute_advantages_and_returns(self, [experience])
        targets = {"returns": experience.returns} if estimator == "gae" else {}
        return {"advantages": experience.advantages} | targets

    parameters = {"estimator": estimator, "kl": kl, "gamma": gamma, "lambd": lam}
    return Entry(MAKER, "unbound", run, parameters)


def policy(*, tokens: bool = True, **options: Any) -> Entry:
    """The policy's loss; `tokens` where a token's loss does not depend on the other tokens."""
    correction = options.get("is_correction_level", "off") != "off"

    def run(batch: Batch) -> Outputs:
        def loss(logprobs: Tensor, mask: Tensor) -> Tensor:
            sampling = batch["sampling_logprobs"] if correction else None
            return PolicyLoss(**options)(
                logprobs, batch["old_logprobs"], batch["advantages"], mask.long(), sampling
            )[0]

        whole = differentiate(lambda logprobs: loss(logprobs, batch["mask"]), batch["logprobs"])
        if tokens:
            whole["token_loss"] = token_by_token(lambda mask: loss(batch["logprobs"], mask), batch["mask"])
        return whole

    return Entry("openrlhf.models.loss:PolicyLoss", "imported", run, options)


def divergence(estimator: str) -> Entry:
    """A KL estimate of each token, and the gradient of its sum over all of them."""

    def run(batch: Batch) -> Outputs:
        def estimate(logprobs: Tensor) -> Tensor:
            return compute_approx_kl(logprobs, batch["ref_logprobs"], kl_estimator=estimator)

        whole = differentiate(lambda logprobs: estimate(logprobs).sum(), batch["logprobs"])
        return {"estimate": estimate(batch["logprobs"]), "gradient": whole["gradient"]}

    path = "openrlhf.models.utils:compute_approx_kl"
    return Entry(path, "imported", run, {"kl_estimator": estimator}, (*USUAL, "far"))


def value_loss(batch: Batch) -> Outputs:
    """Half of the mean over tokens of the greater squared error."""
    return differentiate(
        lambda values: ValueLoss(0.5)(values, batch["old_values"], batch["returns"], batch["mask"].long()),
        batch["values"],
    )


def controller(batch: Batch) -> Outputs:
    """The coefficient after each of eight updates, of 4 responses each."""
    kl = AdaptiveKLController(init_kl_coef=0.1, target=0.5, horizon=40)
    values = []
    for divergence_now in batch["entropy"][:, 0].tolist():
        kl.update(divergence_now, n_steps=4)
        values.append(kl.value)
    return {"coefficients": torch.tensor(values)}


BOUNDS = [0.5, 2.0]
ENTRIES = {
    "group_norm": advantage("group_norm"),
    "group_norm_kl": advantage("group_norm", kl=0.01),
    "rloo": advantage("rloo"),
    "dr_grpo": advantage("dr_grpo"),
    "reinforce_baseline": advantage("reinforce_baseline"),
    "reinforce": advantage("reinforce", kl=0.01, gamma=0.9),
    "gae": advantage("gae", kl=0.01, gamma=0.95, lam=0.9),
    "clip": policy(),
    "clip_higher_sequence_mean": policy(clip_eps_high=0.28, token_level_loss=False),
    "dual_clip": policy(dual_clip=3.0),
    "gspo": policy(policy_loss_type="gspo", tokens=False),
    "token_truncate": policy(
        is_correction_level="token", is_correction_mode="clip", is_correction_threshold=BOUNDS
    ),
    "token_mask": policy(
        is_correction_level="token", is_correction_mode="mask", is_correction_threshold=BOUNDS
    ),
    "kl_k1": divergence("k1"),
    "kl_k2": divergence("k2"),
    "kl_k3": divergence("k3"),
    "kl_controller": Entry(
        "openrlhf.trainer.ppo_utils.kl_controller:AdaptiveKLController",
        "imported",
        controller,
        {"target": 0.5, "horizon": 40},
        ("ragged",),
    ),
    "value_loss": Entry("openrlhf.models.loss:ValueLoss", "imported", value_loss, {"clip_eps": 0.5}),
}
