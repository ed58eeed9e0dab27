"""TRL: its formulas stand inside of trainer methods, which are called with a bare namespace for `self`.

So what runs is the method itself; the model's log-probabilities are the batch's.
"""

import math
from collections import defaultdict, deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from harness import USUAL, Entry, Outputs, differentiate, token_by_token
from parity_batches import Batch, G, N, T, two_distributions
from torch import Tensor
from trl.experimental.gmpo.gmpo_trainer import GMPOTrainer
from trl.experimental.gold.gold_trainer import GOLDTrainer
from trl.experimental.server_distillation import server_distillation_trainer
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.rloo_trainer import RLOOTrainer

ACCELERATOR = SimpleNamespace(
    device=torch.device("cpu"),
    process_index=0,
    num_processes=1,
    sync_gradients=True,
    gather=lambda x: x,
    gather_for_metrics=lambda x: x,
    reduce=lambda x, reduction: x,  # noqa: ARG005 - accelerate's signature
    pad_across_processes=lambda x, dim, pad_index: x,  # noqa: ARG005
    unwrap_model=lambda x: x,
)
ARGS = {
    "per_device_train_batch_size": N,
    "steps_per_generation": 1,
    "gradient_accumulation_steps": 1,
    "gradient_checkpointing_kwargs": None,
    "use_bias_correction_kl": True,
    "delta": None,
    "sapo_temperature_pos": 1.0,
    "sapo_temperature_neg": 1.05,
    "vespo_k_pos": 2.0,
    "vespo_lambda_pos": 3.0,
    "vespo_k_neg": 3.0,
    "vespo_lambda_neg": 2.0,
    "entropy_target": 0.2,
    "entropy_coef_delta": 0.005,
    "entropy_coef_min": 0.0,
    "entropy_coef_max": 1.0,
}
# GRPOConfig's defaults, as GRPOTrainer.__init__ copies them; what is None or False is switched off
TRAINER = {
    "accelerator": ACCELERATOR,
    "model": SimpleNamespace(training=True, is_gradient_checkpointing=False),
    "ref_model": "reference",
    "beta": 0.0,
    "epsilon_low": 0.2,
    "epsilon_high": 0.2,
    "loss_type": "dapo",
    "importance_sampling_level": "token",
    "top_entropy_quantile": 1.0,
    "off_policy_mask_threshold": None,
    "use_vllm": False,
    "vllm_importance_sampling_correction": True,
    "vllm_importance_sampling_mode": "sequence_mask",
    "vllm_importance_sampling_clip_max": 3.0,
    "vllm_importance_sampling_clip_min": None,
    "scale_rewards": "group",
    "multi_objective_aggregation": "sum_then_normalize",
    "normalize_advantages": False,
    "reward_clip_range": None,
    "num_generations": G,
    "num_iterations": 1,
    "max_completion_length": T,
    "current_gradient_accumulation_steps": 1,
    "mask_truncated_completions": False,
    "environment_factories": None,
    "environments": [],
    "tools": [],
    "aux_loss_enabled": False,
    "use_adaptive_entropy": False,
    "entropy_coef": 0.0,
    "_entropy_bonus_enabled": False,
    "_last_world_entropy": math.inf,
    "_entropy_window_stats": None,
    "_is_vlm": False,
    "_tokenizer": SimpleNamespace(pad_token_id=0),
    "pad_to_multiple_of": None,
    "log_multimodal": False,
    "_pending_extra_logs": {},
    "_pending_metrics": {},
}


def trainer(**options: Any) -> SimpleNamespace:
    """A `self` with TRL's defaults, and those options that are set to something else."""
    args = SimpleNamespace(**(ARGS | {name: options.pop(name) for name in ARGS if name in options}))
    logs: dict[str, Any] = {name: deque() for name in ("prompt", "completion", "advantages")}
    logs |= {"rewards": defaultdict(deque), "extra": defaultdict(deque)}
    metrics = {"train": defaultdict(list)}
    return SimpleNamespace(**(TRAINER | options), args=args, _logs=logs, _metrics=metrics)


def generate(batch: Batch, rewards: Tensor, kind: type = GRPOTrainer, **options: Any) -> dict[str, Tensor]:
    """`_generate_and_score_completions`, where generation and scoring give the batch's columns."""
    self = trainer(**options)
    lengths = batch["mask"].sum(-1).tolist()
    completions = [[1] * length for length in lengths]
    sampling = [
        row[:length].tolist() for row, length in zip(batch["sampling_logprobs"], lengths, strict=True)
    ]
    names = ["correct", "format"][: rewards.shape[1]]
    self.reward_func_names, self.reward_funcs = names, names
    self.reward_weights = torch.tensor([1.0, 0.5])[: rewards.shape[1]]
    self._calculate_rewards = lambda *_: rewards
    self._generate = lambda prompts: (
        (
            [[1]] * len(prompts), completions, None, completions, sampling, {}, None, None,
        )
        if kind is GRPOTrainer
        else ([[1]] * len(prompts), completions, completions)
    )  # fmt: skip

    def logprobs(model: Any, *_: Any, **__: Any) -> tuple[Tensor, None, None]:
        width = max(lengths)
        column = "ref_logprobs" if model == "reference" else "old_logprobs"
        return batch[column][:, :width], None, None

    self._get_per_token_logps_and_entropies = logprobs
    return kind._generate_and_score_completions(self, [{"prompt": "p"} for _ in range(N)])


def total(batch: Batch) -> Tensor:
    """One reward function; it abstains where the response is unscored."""
    return torch.where(batch["scored"], batch["rewards"], torch.nan)[:, None]


def advantage(batches: tuple[str, ...] = USUAL, **options: Any) -> Entry:
    """GRPO's advantages, the same for all tokens of a response."""

    def run(batch: Batch) -> Outputs:
        rewards = total(batch)
        if options.get("multi_objective_aggregation") == "normalize_then_sum":
            rewards = torch.stack([batch["correct"], batch["format"]], dim=-1)
        advantages = generate(batch, rewards, **options)["advantages"]
        return {"advantages": advantages[:, None].expand(N, T)}

    return Entry(
        "trl.trainer.grpo_trainer:GRPOTrainer._generate_and_score_completions",
        "unbound",
        run,
        options,
        batches,
    )


def rloo(batch: Batch) -> Outputs:
    """RLOO's advantages; the KL is taken off the reward before the baseline."""
    got = generate(batch, total(batch), RLOOTrainer, beta=0.05)
    return {"advantages": got["advantages"][:, None].expand(N, T)}


def correction(**options: Any) -> Entry:
    """The weight of each token's loss."""

    def run(batch: Batch) -> Outputs:
        got = generate(batch, total(batch), use_vllm=True, **options)["importance_sampling_ratio"]
        weights = torch.ones(N, T)
        weights[:, : max(batch["mask"].sum(-1))] = got
        return {"weights": weights}

    return Entry(
        "trl.trainer.grpo_trainer:GRPOTrainer._generate_and_score_completions", "unbound", run, options
    )


def inputs_of(batch: Batch, mask: Tensor) -> dict[str, Tensor]:
    """What `_compute_loss` is called with."""
    return {
        "prompt_ids": torch.ones(N, 1).long(),
        "prompt_mask": torch.ones(N, 1).long(),
        "completion_ids": torch.ones(N, T).long(),
        "completion_mask": mask.long(),
        "advantages": batch["advantages"][:, 0],
        "old_per_token_logps": batch["old_logprobs"],
        "old_logps": (batch["old_logprobs"] * mask).sum(-1),
        "ref_per_token_logps": batch["ref_logprobs"],
        "num_items_in_batch": mask.sum(),
    }


def rloo_loss(batch: Batch) -> Outputs:
    """The gradient of RLOO's `_compute_loss`."""

    def of(logprobs: Tensor) -> Tensor:
        self = trainer()
        self._get_per_token_logps_and_entropies = lambda *_, **__: (logprobs, batch["entropy"], None)
        return RLOOTrainer._compute_loss(self, None, inputs_of(batch, batch["mask"]))

    return {"gradient": differentiate(of, batch["logprobs"])["gradient"]}


def adaptive_entropy(batch: Batch) -> Outputs:
    """The coefficient held after each of eight steps of other entropies, and the one that is applied."""
    self = trainer(
        use_adaptive_entropy=True, _entropy_bonus_enabled=True, entropy_coef=0.1, entropy_target=0.8,
        entropy_coef_delta=0.05, entropy_coef_max=0.2,
    )  # fmt: skip
    held, applied = [], []
    for entropy in batch["entropy"][:, 0]:
        of_all = entropy.expand(N, T)
        self._get_per_token_logps_and_entropies = lambda *_, of_all=of_all, **__: (
            batch["logprobs"], of_all, None,
        )  # fmt: skip
        GRPOTrainer._compute_loss(self, None, inputs_of(batch, batch["mask"]))
        held.append(self.entropy_coef)
        applied.append(self.entropy_coef if self._last_world_entropy <= self.args.entropy_target else 0.0)
    return {"held": torch.tensor(held), "applied": torch.tensor(applied)}


def loss(
    kind: type = GRPOTrainer,
    *,
    tokens: bool = True,
    batches: tuple[str, ...] = USUAL,
    **options: Any,
) -> Entry:
    """`_compute_loss`; `tokens` where a token's loss does not depend on the others and is summed."""

    def run(batch: Batch) -> Outputs:
        def of(logprobs: Tensor, mask: Tensor, entropy: Tensor) -> Tensor:
            self = trainer(**options)
            self._get_per_token_logps_and_entropies = lambda *_, **__: (logprobs, entropy, None)
            self.get_high_entropy_mask = lambda *args: GRPOTrainer.get_high_entropy_mask(self, *args)
            self.get_off_policy_mask = GRPOTrainer.get_off_policy_mask
            self.get_gamma_weights = GRPOTrainer.get_gamma_weights
            inputs = inputs_of(batch, mask)
            if self.off_policy_mask_threshold is not None:
                inputs["sampling_per_token_logps"] = batch["sampling_logprobs"]
            if self.use_vllm:
                inputs["importance_sampling_ratio"] = generate(batch, total(batch), **options)[
                    "importance_sampling_ratio"
                ]
            return kind._compute_loss(self, None, inputs)

        whole = differentiate(
            lambda logprobs: of(logprobs, batch["mask"], batch["entropy"]), batch["logprobs"]
        )
        if tokens:
            whole["token_loss"] = token_by_token(
                lambda mask: of(batch["logprobs"], mask, batch["entropy"]), batch["mask"]
            )
        if options.get("_entropy_bonus_enabled"):
            whole["entropy_gradient"] = differentiate(
                lambda entropy: of(batch["logprobs"], batch["mask"], entropy), batch["entropy"]
            )["gradient"]
        return whole

    path = f"{kind.__module__}:{kind.__name__}._compute_loss"
    return Entry(path, "unbound", run, options, batches)


def high_entropy(batch: Batch) -> Outputs:
    """1 on the fifth of the tokens with the highest entropy."""
    kept = GRPOTrainer.get_high_entropy_mask(trainer(), batch["entropy"], batch["mask"].long(), 0.8)
    return {"kept": kept.double()}


def distillation(function: str, divergence: Callable[[Tensor, Tensor], Tensor], **parameters: Any) -> Entry:
    """A divergence of each token's distribution from a teacher's, and the gradient of its sum."""

    def run(batch: Batch) -> Outputs:
        def estimate(logprobs: Tensor) -> Tensor:
            return divergence(*two_distributions(batch, logprobs))

        def of_responses(logprobs: Tensor) -> Tensor:
            return torch.where(batch["mask"], estimate(logprobs), 0.0).sum()

        gradient = differentiate(of_responses, batch["logprobs"])["gradient"]
        return {"estimate": estimate(batch["logprobs"]), "gradient": gradient}

    return Entry(function, "imported", run, parameters)


def jsd(beta: float) -> Entry:
    """GKD's loss before its reduction."""

    def divergence(student: Tensor, teacher: Tensor) -> Tensor:
        return GOLDTrainer.generalized_jsd_loss(student, teacher, beta=beta, reduction="none").sum(-1)

    return distillation(
        "trl.experimental.gold.gold_trainer:GOLDTrainer.generalized_jsd_loss", divergence, beta=beta
    )


def forward_kl_with_tail(student: Tensor, teacher: Tensor) -> Tensor:
    """The teacher's two most probable tokens, and all others as one."""
    top, valid = teacher.log_softmax(-1).topk(2, -1), torch.ones(N, T, 2, dtype=torch.bool)
    named = student.log_softmax(-1).gather(-1, top.indices)
    ours, both = server_distillation_trainer._add_tail_bucket(named, valid)
    theirs, _ = server_distillation_trainer._add_tail_bucket(top.values, valid)
    return server_distillation_trainer._jsd_divergence(ours, theirs, 0, both).sum(-1)


ENTRIES = {
    "gkd": jsd(0.3),
    "gkd_forward": jsd(0.0),
    "gkd_reverse": jsd(1.0),
    "distillation_with_tail": distillation(
        "trl.experimental.server_distillation.server_distillation_trainer:_add_tail_bucket",
        forward_kl_with_tail,
        top_k=2,
    ),
    "grpo": advantage(),
    "grpo_batch_std": advantage(scale_rewards="batch"),
    "grpo_without_std": advantage(scale_rewards="none"),
    "grpo_unscored": advantage(("unscored",)),
    "gdpo": advantage(multi_objective_aggregation="normalize_then_sum"),
    "rloo": Entry(
        "trl.trainer.rloo_trainer:RLOOTrainer._generate_and_score_completions",
        "unbound",
        rloo,
        {"beta": 0.05},
        (*USUAL, "unscored"),
    ),
    "clip": loss(),
    "clip_higher": loss(epsilon_high=0.28),
    "delta": loss(delta=1.5),
    "loss_grpo": loss(loss_type="grpo", tokens=False),
    "loss_bnpo": loss(loss_type="bnpo", tokens=False),
    "loss_dr_grpo": loss(loss_type="dr_grpo", tokens=False),
    "gspo": loss(loss_type="grpo", importance_sampling_level="sequence", tokens=False),
    "gspo_token_mean": loss(importance_sampling_level="sequence", tokens=False),
    "luspo": loss(loss_type="luspo", importance_sampling_level="sequence", tokens=False),
    "cispo": loss(loss_type="cispo", epsilon_high=5.0),
    "sapo": loss(loss_type="sapo", tokens=False),
    "gmpo": loss(GMPOTrainer, epsilon_low=0.4, epsilon_high=0.4, tokens=False),
    "vespo": loss(loss_type="vespo", tokens=False),
    "vespo_vllm": loss(
        loss_type="vespo",
        tokens=False,
        use_vllm=True,
        vllm_importance_sampling_mode="token_truncate",
        vllm_importance_sampling_clip_max=1e9,
    ),
    "off_policy_mask": loss(off_policy_mask_threshold=0.1, tokens=False),
    "rloo_loss": Entry("trl.trainer.rloo_trainer:RLOOTrainer._compute_loss", "unbound", rloo_loss),
    "adaptive_entropy": Entry(
        "trl.trainer.grpo_trainer:GRPOTrainer._compute_loss",
        "unbound",
        adaptive_entropy,
        {"entropy_target": 0.8, "entropy_coef_delta": 0.05, "entropy_coef_max": 0.2},
    ),
    "kl_plain": loss(beta=0.04, use_bias_correction_kl=False),
    "kl_unbiased": loss(beta=0.04),
    "entropy_bonus": loss(entropy_coef=0.01, _entropy_bonus_enabled=True, tokens=False),
    "high_entropy": Entry(
        "trl.trainer.grpo_trainer:GRPOTrainer.get_high_entropy_mask",
        "unbound",
        high_entropy,
        {"top_entropy_quantile": 0.2},
    ),
    "token_truncate": correction(
        vllm_importance_sampling_mode="token_truncate", vllm_importance_sampling_clip_max=2.0
    ),
    "token_mask": correction(
        vllm_importance_sampling_mode="token_mask",
        vllm_importance_sampling_clip_min=0.5,
        vllm_importance_sampling_clip_max=2.0,
    ),
    "sequence_truncate": correction(vllm_importance_sampling_mode="sequence_truncate"),
    "sequence_mask": correction(),
    "whole_loss": loss(use_vllm=True, beta=0.04, tokens=False),
}
