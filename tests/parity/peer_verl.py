"""verl: its functions are imported and called; only packages that they do not need are stubs."""

import inspect
from types import SimpleNamespace
from typing import Any

import torch
from harness import USUAL, Entry, Outputs, differentiate, stub, token_by_token
from parity_batches import Batch, N, T, two_distributions
from torch import Tensor

from grpo_pl.functional import outcome_rewards

stub("ray", "omegaconf", "tensordict", "hydra", "codetiming", "torchdata", "orjson", "pynvml")

from verl.trainer.config import AlgoConfig  # noqa: E402
from verl.trainer.distillation import losses as estimated_distillation  # noqa: E402
from verl.trainer.distillation.fsdp import losses as distillation_losses  # noqa: E402
from verl.trainer.ppo import core_algos, ray_trainer, rollout_corr_helper  # noqa: E402
from verl.utils.torch_functional import masked_whiten  # noqa: E402
from verl.workers.config import ActorConfig, PolicyLossConfig  # noqa: E402
from verl.workers.utils import losses  # noqa: E402

CORE = "verl.trainer.ppo.core_algos"
HOLES = (*USUAL, "holes")


def advantage(
    function: str, batches: tuple[str, ...] = USUAL, *, outcome_only: bool = False, **parameters: Any
) -> Entry:
    """An estimator of `core_algos`, called with those columns that its signature names."""
    estimator = getattr(core_algos, function)
    names = inspect.signature(estimator).parameters

    def run(batch: Batch) -> Outputs:
        mask = batch["mask"].double()
        rewards = outcome_rewards(batch["rewards"], batch["mask"]) if outcome_only else batch["token_rewards"]
        columns = {
            "token_level_rewards": rewards,
            "response_mask": mask,
            "index": batch["group_ids"].numpy(),
            "reward_baselines": batch["greedy"],
            "values": batch["old_values"],
            "config": AlgoConfig(**parameters),
            "non_tensor_batch": {name: batch[name].numpy() for name in ("correct", "format")},
            "batch": {
                "prompts": torch.zeros(N, 1),
                "attention_mask": torch.cat([torch.ones(N, 1), mask], dim=1).long(),
            },
        }
        call = {name: (columns | parameters)[name] for name in names if name in columns | parameters}
        advantages, returns = estimator(**call)
        return {"advantages": advantages} | ({"returns": returns} if "values" in names else {})

    return Entry(f"{CORE}:{function}", "imported", run, parameters, batches)


def actor(**options: Any) -> ActorConfig:
    """verl's actor config; what has no default there has nothing to do with the loss."""
    return ActorConfig(strategy="fsdp", rollout_n=4, ppo_micro_batch_size_per_gpu=1, **options)


def policy(
    name: str,
    aggregation: str = "token-mean",
    *,
    tokens: bool = True,
    batches: tuple[str, ...] = USUAL,
    **options: Any,
) -> Entry:
    """A policy loss; `tokens` where a token's loss does not depend on the other tokens."""
    function = core_algos.get_policy_loss_fn(name)

    def config() -> ActorConfig:
        others = {key: value for key, value in options.items() if key != "policy_loss"}
        return actor(policy_loss=PolicyLossConfig(**options.get("policy_loss", {})), **others)

    def run(batch: Batch) -> Outputs:
        def loss(logprobs: Tensor, mask: Tensor, config: ActorConfig, aggregation: str) -> Tensor:
            return function(
                old_log_prob=batch["old_logprobs"],
                log_prob=logprobs,
                advantages=batch["advantages"],
                response_mask=mask.double(),
                loss_agg_mode=aggregation,
                config=config,
            )[0]

        whole = differentiate(
            lambda logprobs: loss(logprobs, batch["mask"], config(), aggregation), batch["logprobs"]
        )
        if tokens:
            whole["token_loss"] = token_by_token(
                lambda mask: loss(batch["logprobs"], mask, config(), "token-mean"), batch["mask"]
            )
        return whole

    return Entry(
        f"{CORE}:{function.__name__}", "imported", run, {"loss_agg_mode": aggregation} | options, batches
    )


def aggregation(mode: str, **options: Any) -> Entry:
    """The sum over tokens; what is summed is `token_advantages`, any matrix."""

    def run(batch: Batch) -> Outputs:
        return differentiate(
            lambda loss: core_algos.agg_loss(loss, batch["mask"].double(), mode, **options),
            batch["token_advantages"],
        )

    return Entry(
        f"{CORE}:agg_loss", "imported", run, {"loss_agg_mode": mode} | options, (*USUAL, "empty", "holes")
    )


def divergence(estimator: str) -> Entry:
    """A KL estimate of each token, and the gradient of its sum over all of them."""

    def run(batch: Batch) -> Outputs:
        def estimate(logprobs: Tensor) -> Tensor:
            return core_algos.kl_penalty(logprobs, batch["ref_logprobs"], estimator)

        whole = differentiate(lambda logprobs: estimate(logprobs).sum(), batch["logprobs"])
        return {"estimate": estimate(batch["logprobs"]), "gradient": whole["gradient"]}

    return Entry(f"{CORE}:kl_penalty", "imported", run, {"kl_penalty": estimator}, (*USUAL, "far"))


def kl_in_reward(batch: Batch) -> Outputs:
    """The rewards at tokens with the cost taken off, at padding too (where the mask is 0)."""

    class Columns(dict):  # verl asks a tensordict for its size
        batch_size = (N,)

    columns = Columns(
        response_mask=batch["mask"].double(),
        token_level_scores=batch["token_rewards"],
        old_log_probs=batch["old_logprobs"],
        ref_log_prob=batch["ref_logprobs"],
    )
    data = SimpleNamespace(batch=columns)
    ray_trainer.apply_kl_penalty(data, core_algos.FixedKLController(0.001), "kl")
    return {"rewards": columns["token_level_rewards"]}


def correction(**options: Any) -> Entry:
    """Importance weights of tokens; 0 at padding."""

    def run(batch: Batch) -> Outputs:
        log_ratio = batch["old_logprobs"] - batch["sampling_logprobs"]
        weights, _ = rollout_corr_helper.compute_rollout_correction_weights(
            log_ratio, batch["mask"].double(), **options
        )
        return {"weights": weights}

    path = "verl.trainer.ppo.rollout_corr_helper:compute_rollout_correction_weights"
    return Entry(path, "imported", run, options)


def rejection(mode: str, threshold: str) -> Entry:
    """The mask of the response after rejection."""
    options = {"rollout_rs": mode, "rollout_rs_threshold": threshold}

    def run(batch: Batch) -> Outputs:
        log_ratio = batch["old_logprobs"] - batch["sampling_logprobs"]
        mask, _ = rollout_corr_helper.compute_rollout_rejection_mask(
            log_ratio, batch["mask"].double(), **options
        )
        return {"kept": mask}

    return Entry(
        "verl.trainer.ppo.rollout_corr_helper:compute_rollout_rejection_mask", "imported", run, options
    )


def bypass(batch: Batch) -> Outputs:
    """The clipped loss of bypass mode: the sampler's log-probabilities are the old ones."""
    settings = {"loss_type": "ppo_clip", "rollout_rs": "token_k1", "rollout_rs_threshold": "0.25_2.0"}
    config = actor()
    object.__setattr__(config.policy_loss, "rollout_correction", settings)
    return differentiate(
        lambda logprobs: core_algos.compute_policy_loss_bypass_mode(
            batch["sampling_logprobs"], logprobs, batch["advantages"], batch["mask"].double(), config=config
        )[0],
        batch["logprobs"],
    )


def value_loss(batch: Batch) -> Outputs:
    """Half of the mean over tokens of the greater squared error."""
    return differentiate(
        lambda values: core_algos.compute_value_loss(
            values, batch["returns"], batch["old_values"], batch["mask"].double(), 0.5
        )[0],
        batch["values"],
    )


def whole_loss(batch: Batch) -> Outputs:
    """The worker's `ppo_loss` with the defaults of GRPO and an entropy bonus."""
    config = actor(use_kl_loss=True, entropy_coeff=0.01)

    class Columns(dict):  # a tensordict that is padded already
        def select(self, *_: str) -> "Columns":
            return self

        def to_padded_tensor(self) -> "Columns":
            return self

    def loss(both: Tensor) -> Tensor:
        losses.no_padding_2_padding = lambda column, _: column
        data = Columns(
            response_mask=batch["mask"],
            old_log_probs=batch["old_logprobs"],
            advantages=batch["advantages"],
            ref_log_prob=batch["ref_logprobs"],
            dp_size=1,
            batch_num_tokens=int(batch["mask"].sum()),
            global_batch_size=N,
        )
        return losses.ppo_loss(config, {"log_probs": both[0], "entropy": both[1]}, data)[0]

    both = differentiate(loss, torch.stack([batch["logprobs"], batch["entropy"]]))
    return {"loss": both["loss"], "gradient": both["gradient"][0], "entropy_gradient": both["gradient"][1]}


def controller(batch: Batch) -> Outputs:
    """The coefficient after each of eight updates, of 4 responses each."""
    kl = core_algos.AdaptiveKLController(init_kl_coef=0.1, target_kl=0.5, horizon=40)
    values = []
    for divergence_now in batch["entropy"][:, 0].tolist():
        kl.update(divergence_now, n_steps=4)
        values.append(kl.value)
    return {"coefficients": torch.tensor(values)}


def forward_kl_topk(batch: Batch) -> Outputs:
    """The terms of the teacher's two most probable tokens, and the gradient of the sum of all."""

    def estimate(logprobs: Tensor) -> Tensor:
        student, teacher = two_distributions(batch, logprobs)
        top = teacher.log_softmax(-1).topk(2, -1)
        named = student.log_softmax(-1).gather(-1, top.indices)
        return distillation_losses.kl_divergence(log_q=named, log_p=top.values)

    def of_responses(logprobs: Tensor) -> Tensor:
        return torch.where(batch["mask"], estimate(logprobs), 0.0).sum()

    gradient = differentiate(of_responses, batch["logprobs"])["gradient"]
    return {"estimate": estimate(batch["logprobs"]), "gradient": gradient}


def distillation_by_policy_gradient(batch: Batch) -> Outputs:
    """The advantages of `distillation_loss` with `use_policy_gradient`: minus the loss, of the old policy."""
    estimated_distillation.no_padding_2_padding = lambda column, _: column
    data = {"response_mask": batch["mask"], "teacher_logprobs": batch["ref_logprobs"][..., None]}
    settings = SimpleNamespace(distillation_loss=SimpleNamespace(loss_mode="k1"))
    estimate = estimated_distillation.compute_distillation_loss_reverse_kl_estimator
    return {"advantages": -estimate(None, settings, {"log_probs": batch["old_logprobs"]}, data)[0]}


ENTRIES = {
    "distillation": Entry(
        "verl.trainer.distillation.losses:compute_distillation_loss_reverse_kl_estimator",
        "imported",
        distillation_by_policy_gradient,
        {"loss_mode": "k1"},
    ),
    "forward_kl_topk": Entry(
        "verl.trainer.distillation.fsdp.losses:kl_divergence", "imported", forward_kl_topk, {"topk": 2}
    ),
    "grpo": advantage("compute_grpo_outcome_advantage"),
    "grpo_without_std": advantage("compute_grpo_outcome_advantage", norm_adv_by_std_in_grpo=False),
    "rloo": advantage("compute_rloo_outcome_advantage"),
    "remax": advantage("compute_remax_outcome_advantage", outcome_only=True),
    "opo": advantage("compute_opo_outcome_advantage"),
    "pass_at_k": advantage("compute_grpo_passk_outcome_advantage", norm_adv_by_std_in_grpo=False),
    "reinforce_plus_plus": advantage("compute_reinforce_plus_plus_outcome_advantage", HOLES, gamma=0.9),
    "reinforce_plus_plus_baseline": advantage("compute_reinforce_plus_plus_baseline_outcome_advantage"),
    "gae": advantage("compute_gae_advantage_return", HOLES, gamma=0.95, lam=0.9),
    "gdpo": advantage(
        "compute_gdpo_outcome_advantage",
        gdpo_reward_keys=["correct", "format"],
        gdpo_reward_weights=[1.0, 0.5],
    ),
    "whiten": Entry(
        "verl.utils.torch_functional:masked_whiten",
        "imported",
        lambda batch: {"advantages": masked_whiten(batch["token_advantages"], batch["mask"].double())},
        {},
        HOLES,
    ),
    "dual_clip": policy("vanilla", batches=(*USUAL, "far")),
    "clip_higher": policy("vanilla", clip_ratio_high=0.28),
    "gspo": policy("gspo", "seq-mean-token-mean", tokens=False),
    "gspo_token_mean": policy("gspo", "token-mean", tokens=False, clip_ratio_low=3e-4, clip_ratio_high=4e-4),
    "cispo": policy("cispo"),
    "sapo": policy("sapo", "seq-mean-token-mean", tokens=True),
    "gmpo": policy("geo_mean", tokens=False, clip_ratio_low=0.4, clip_ratio_high=0.4),
    "reinforce": policy("gpg"),
    "dppo_tv": policy("dppo_tv", batches=("proper", "on_policy")),
    "dppo_kl": policy("dppo_kl", batches=("proper",), clip_ratio_low=0.05, clip_ratio_high=0.05),
    "clip_cov": policy(
        "clip_cov",
        tokens=False,
        batches=("near",),
        policy_loss={"clip_cov_ratio": 1.0, "clip_cov_lb": 0.2, "clip_cov_ub": 0.6},
    ),
    "kl_cov": policy(
        "kl_cov", tokens=False, batches=("near",), policy_loss={"kl_cov_ratio": 0.2, "ppo_kl_coef": 1.0}
    ),
    "token_mean": aggregation("token-mean"),
    "seq_mean_token_sum": aggregation("seq-mean-token-sum"),
    "seq_mean_token_mean": aggregation("seq-mean-token-mean"),
    "seq_mean_token_sum_norm": aggregation("seq-mean-token-sum-norm", loss_scale_factor=T),
    "kl_k1": divergence("kl"),
    "kl_k2": divergence("mse"),
    "kl_k3": divergence("low_var_kl"),
    "kl_in_reward": Entry(
        "verl.trainer.ppo.ray_trainer:apply_kl_penalty", "imported", kl_in_reward, {"kl_coef": 0.001}
    ),
    "kl_controller": Entry(
        f"{CORE}:AdaptiveKLController", "imported", controller, {"target_kl": 0.5, "horizon": 40}, ("ragged",)
    ),
    "token_truncate": correction(rollout_is="token", rollout_is_threshold=2.0),
    "sequence_truncate": correction(rollout_is="sequence", rollout_is_threshold=2.0),
    "icepop": correction(rollout_is="token", rollout_is_threshold="0.5_5.0"),
    "token_normalized": correction(
        rollout_is="token", rollout_is_threshold=2.0, rollout_is_batch_normalize=True
    ),
    "sequence_normalized": correction(
        rollout_is="sequence", rollout_is_threshold=2.0, rollout_is_batch_normalize=True
    ),
    "reject_token_k1": rejection("token_k1", "0.25_2.0"),
    "reject_token_k2": rejection("token_k2", "0.5"),
    "reject_token_k3": rejection("token_k3", "0.5"),
    "reject_seq_sum_k1": rejection("seq_sum_k1", "0.25_2.0"),
    "reject_seq_sum_k2": rejection("seq_sum_k2", "2.0"),
    "reject_seq_sum_k3": rejection("seq_sum_k3", "2.0"),
    "reject_seq_mean_k1": rejection("seq_mean_k1", "0.8_1.4"),
    "reject_seq_mean_k2": rejection("seq_mean_k2", "0.4"),
    "reject_seq_mean_k3": rejection("seq_mean_k3", "0.4"),
    "reject_seq_max_k2": rejection("seq_max_k2", "1.0"),
    "reject_seq_max_k3": rejection("seq_max_k3", "1.0"),
    "reject_by_two": rejection("token_k1,seq_mean_k3", "0.25_2.0,0.4"),
    "bypass": Entry(f"{CORE}:compute_policy_loss_bypass_mode", "imported", bypass, {"loss_type": "ppo_clip"}),
    "value_loss": Entry(f"{CORE}:compute_value_loss", "imported", value_loss, {"cliprange_value": 0.5}),
    "whole_loss": Entry(
        "verl.workers.utils.losses:ppo_loss",
        "imported",
        whole_loss,
        {"use_kl_loss": True, "kl_loss_coef": 0.001, "kl_loss_type": "low_var_kl", "entropy_coeff": 0.01},
    ),
}
