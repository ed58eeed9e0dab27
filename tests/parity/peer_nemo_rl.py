"""NeMo-RL: its classes are imported and called; they speak about sequences, whose column 0 is the prompt."""

from typing import Any

import torch
from harness import USUAL, Entry, Outputs, differentiate, stub, token_by_token
from parity_batches import Batch, N
from torch import Tensor

stub("ray", "nemo_rl.models", "nemo_rl.distributed", "nemo_rl.utils", "nemo_rl.data", "nemo_rl.environments")

from nemo_rl.algorithms import advantage_estimator as estimators  # noqa: E402
from nemo_rl.algorithms.loss.loss_functions import (  # noqa: E402
    ClippedPGLossConfig,
    ClippedPGLossFn,
    MseValueLossConfig,
    MseValueLossFn,
)

GAE = {
    "normalize_advantages": True,
    "gae_lambda_value": None,
    "gae_lambda_policy": None,
    "length_adaptive_alpha": 0.0,
}


def advantage(name: str, batches: tuple[str, ...] = USUAL, **options: Any) -> Entry:
    """An estimator class; its `rewards` are one a response."""
    of_gae = name == "GeneralizedAdvantageEstimator"

    def run(batch: Batch) -> Outputs:
        config = GAE | options if of_gae else estimators.AdvEstimatorConfig(**options)
        got = getattr(estimators, name)(config, ClippedPGLossConfig()).compute_advantage(
            prompt_ids=batch["group_ids"][:, None],
            rewards=batch["rewards"].clone(),
            mask=batch["mask"].double(),
            values=batch["old_values"],
            repeated_batch={"reward/correct": batch["correct"], "reward/format": batch["format"]},
        )
        return {"advantages": got[0], "returns": got[1]} if of_gae else {"advantages": got}

    return Entry(f"nemo_rl.algorithms.advantage_estimator:{name}", "imported", run, options, batches)


def behind_prompt(column: Tensor) -> Tensor:
    """The column with one of a prompt token before it."""
    return torch.cat([torch.zeros(N, 1), column.double()], dim=1)


def loss(*, tokens: bool = True, batches: tuple[str, ...] = USUAL, **options: Any) -> Entry:
    """`ClippedPGLossFn`; without a KL if none is asked for."""
    options = {"reference_policy_kl_penalty": 0.0} | options

    def run(batch: Batch) -> Outputs:
        def of(logprobs: Tensor, mask: Tensor) -> Tensor:
            columns = {
                "token_mask": mask,
                "advantages": batch["advantages"],
                "prev_logprobs": batch["old_logprobs"],
                "generation_logprobs": batch["sampling_logprobs"],
                "reference_policy_logprobs": batch["ref_logprobs"],
            }
            data = {name: behind_prompt(column) for name, column in columns.items()}
            data["sample_mask"] = torch.ones(N)
            data["rewards"] = batch["rewards"]
            return ClippedPGLossFn(ClippedPGLossConfig(**options))(
                logprobs, data, global_valid_seqs=torch.tensor(float(N)), global_valid_toks=mask.sum()
            )[0]

        whole = differentiate(lambda logprobs: of(logprobs, batch["mask"]), batch["logprobs"])
        if tokens:
            whole["token_loss"] = token_by_token(lambda mask: of(batch["logprobs"], mask), batch["mask"])
        return whole

    return Entry("nemo_rl.algorithms.loss.loss_functions:ClippedPGLossFn", "imported", run, options, batches)


def value_loss(batch: Batch) -> Outputs:
    """Half of the mean over tokens of the greater squared error."""
    data = {
        "token_mask": batch["mask"].double(),
        "sample_mask": torch.ones(N),
        "returns": batch["returns"],
        "values": batch["old_values"],
    }
    function = MseValueLossFn(MseValueLossConfig(cliprange=0.5))
    return differentiate(
        lambda values: function(values, data, torch.tensor(float(N)), batch["mask"].sum())[0],
        batch["values"],
    )


CORRECTED = {"use_importance_sampling_correction": True, "truncated_importance_sampling_ratio": 2.0}
ENTRIES = {
    "grpo": advantage("GRPOAdvantageEstimator"),
    "grpo_not_left_out": advantage("GRPOAdvantageEstimator", use_leave_one_out_baseline=False),
    "grpo_without_std": advantage("GRPOAdvantageEstimator", normalize_rewards=False),
    "gdpo": advantage("GDPOAdvantageEstimator", use_leave_one_out_baseline=False, reward_weights=[1.0, 0.5]),
    "reinforce_plus_plus_baseline": advantage("ReinforcePlusPlusAdvantageEstimator", minus_baseline=True),
    "reinforce_plus_plus": advantage("ReinforcePlusPlusAdvantageEstimator", minus_baseline=False),
    "gae": advantage("GeneralizedAdvantageEstimator", (*USUAL, "holes"), gae_lambda=0.9, gae_gamma=0.95),
    "gae_decoupled": advantage(
        "GeneralizedAdvantageEstimator",
        (*USUAL, "holes"),
        gae_lambda=0.5,
        gae_gamma=0.95,
        gae_lambda_policy=0.9,
        gae_lambda_value=1.0,
    ),
    "gae_length_adaptive": advantage(
        "GeneralizedAdvantageEstimator",
        (*USUAL, "holes"),
        gae_lambda=0.5,
        gae_gamma=0.95,
        gae_lambda_value=1.0,
        length_adaptive_alpha=0.6,
    ),
    "clip": loss(),
    "clip_higher": loss(ratio_clip_max=0.28),
    "dual_clip": loss(ratio_clip_c=3.0),
    "clip_sequence_mean": loss(token_level_loss=False, tokens=False),
    "gspo": loss(token_level_loss=False, sequence_level_importance_ratios=True, tokens=False),
    "cispo": loss(use_cispo=True),
    "positive_nll": loss(positive_example_nll_weight=0.1, tokens=False),
    "reinforce": loss(disable_ppo_ratio=True),
    "token_truncate": loss(truncated_importance_sampling_type="tis", **CORRECTED),
    "icepop": loss(
        truncated_importance_sampling_type="icepop",
        truncated_importance_sampling_ratio_min=0.5,
        **CORRECTED,
    ),
    "seq_mask_tis": loss(
        tokens=False,
        use_importance_sampling_correction=True,
        truncated_importance_sampling_type="seq-mask-tis",
        truncated_importance_sampling_ratio=1.4,
        truncated_importance_sampling_ratio_min=0.8,
    ),
    "whole_loss": loss(reference_policy_kl_penalty=0.01, batches=("on_policy",)),
    "value_loss": Entry(
        "nemo_rl.algorithms.loss.loss_functions:MseValueLossFn", "imported", value_loss, {"cliprange": 0.5}
    ),
}
