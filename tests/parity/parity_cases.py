"""The cases: for each key of a peer's table the component of ours that is meant to say the same.

Responses alone have columns here, and none of the prompt, which no formula looks at. What a peer writes at
padding is not compared, except in gradients, which are 0 there.
"""

from dataclasses import dataclass

from parity_batches import G, T
from parity_ours import (
    Ours,
    advantage,
    aggregation,
    bypassed,
    controller,
    correction,
    critic,
    distillation,
    divergence,
    kept,
    kl_in_reward,
    most_undecided,
    policy,
    target_entropy,
    weighed_and_kept,
    whitened,
)

from grpo_pl.advantages import (
    GAE,
    GDPO,
    OPO,
    Distillation,
    GroupRelative,
    LeaveOneOut,
    MaxRL,
    PassAtK,
    ReinforcePlusPlus,
    ReinforcePlusPlusBaseline,
    ReMax,
)
from grpo_pl.losses import (
    CISPO,
    DPPO,
    GMPO,
    GSPO,
    SAPO,
    VESPO,
    ClipCov,
    ClippedSurrogate,
    ClippedValueLoss,
    ConstantLength,
    KLCov,
    OffPolicyMask,
    PositiveNLL,
    Reinforce,
    SequenceMean,
    TeacherKL,
    TokenMean,
)
from grpo_pl.losses.bypass import CombinedCorrection
from grpo_pl.losses.correction import ImportanceCorrection
from grpo_pl.losses.entropy import EntropyBonus
from grpo_pl.losses.kl import KLInLoss, KLInReward
from grpo_pl.losses.rejection import DivergenceRejection, RatioRejection


@dataclass(frozen=True)
class Case:
    """A formula of a peer, in words, and what of ours is compared with it."""

    key: str
    """`peer/entry` of the tables."""
    formula: str
    ours: Ours


PPO, DUAL = ClippedSurrogate(), ClippedSurrogate(dual_clip=3.0)
HIGHER = ClippedSurrogate(clip_high=0.28)
WIDE_GSPO, AT_TOKENS = GSPO(0.2, 0.2), "token_rewards"
SEQUENCE_MASK = ImportanceCorrection("sequence", "mask", high=3.0)
TRUNCATE, MASK = ImportanceCorrection(high=2.0), ImportanceCorrection(mode="mask", low=0.5, high=2.0)

TRL = [
    Case("trl/grpo", "(r - mean) / (std + 1e-4), std with ddof 1 of the group", advantage(GroupRelative())),
    Case(
        "trl/grpo_batch_std",
        "(r - mean of the group) / (std of all raw rewards + 1e-4)",
        advantage(GroupRelative("batch")),
    ),
    Case("trl/grpo_without_std", "r - mean (Dr. GRPO)", advantage(GroupRelative("none"))),
    Case(
        "trl/grpo_unscored",
        "unscored responses leave the statistics; advantage 0",
        advantage(GroupRelative()),
    ),
    Case(
        "trl/gdpo", "normalize_then_sum: each reward in its group, the sum over the batch", advantage(GDPO())
    ),
    Case(
        "trl/rloo",
        "r - beta sum k1 less the mean of the others, unscored ones left out",
        advantage(LeaveOneOut(), kl=KLInReward(0.05)),
    ),
    Case("trl/clip", "dapo: the clipped surrogate, mean over tokens", policy(PPO)),
    Case("trl/clip_higher", "the same with bounds 0.2 and 0.28", policy(HIGHER)),
    Case(
        "trl/delta",
        "two-sided clipping: min(rho, delta) before the minimum",
        policy(ClippedSurrogate(dual_clip=1.5)),
    ),
    Case("trl/loss_grpo", "grpo: mean over sequences of the mean over tokens", policy(PPO, SequenceMean())),
    Case("trl/loss_bnpo", "bnpo: mean over the tokens of the micro-batch", policy(PPO, TokenMean())),
    Case(
        "trl/loss_dr_grpo",
        "dr_grpo: sum over (sequences times max_completion_length)",
        policy(PPO, ConstantLength(T)),
    ),
    Case("trl/gspo", "the sequence's ratio, mean over sequences", policy(WIDE_GSPO, SequenceMean())),
    Case("trl/gspo_token_mean", "the sequence's ratio, mean over tokens", policy(WIDE_GSPO)),
    Case("trl/luspo", "luspo: the sequence's ratio, sum over tokens", policy(WIDE_GSPO, ConstantLength(1))),
    Case("trl/cispo", "-sg(min(rho, 5)) A logp", policy(CISPO(0.0, 5.0))),
    Case("trl/sapo", "-(4 / tau) sigmoid(tau (rho - 1)) A", policy(SAPO(), SequenceMean())),
    Case("trl/gmpo", "-A times the geometric mean of clipped ratios", policy(GMPO(), SequenceMean())),
    Case("trl/kl_plain", "the clipped surrogate + 0.04 k3", policy(PPO, kl=KLInLoss(0.04))),
    Case(
        "trl/kl_unbiased",
        "the clipped surrogate + 0.04 rho k3, rho with gradient",
        policy(PPO, kl=KLInLoss(0.04, gradient="unbiased")),
    ),
    Case(
        "trl/entropy_bonus", "the clipped surrogate - 0.01 entropy", policy(PPO, entropy=EntropyBonus(0.01))
    ),
    Case("trl/vespo", "-phi(w) A logp, w to the old policy", policy(VESPO(behaviour="old"))),
    Case("trl/vespo_vllm", "the same times untruncated weights: w to the engine", policy(VESPO())),
    Case(
        "trl/off_policy_mask",
        "the clipped surrogate, 0 for bad responses whose mean drift is above 0.1",
        policy(OffPolicyMask(PPO, 0.1)),
    ),
    Case(
        "trl/rloo_loss",
        "the clipped ratio of responses, mean over responses: its gradient",
        policy(ClippedSurrogate(level="sequence"), ConstantLength(1)),
    ),
    Case("trl/adaptive_entropy", "coefficient +-= 0.05 towards entropy 0.8, within [0, 0.2]", target_entropy),
    Case("trl/high_entropy", "the fifth of the tokens with the highest entropy", most_undecided),
    Case("trl/token_truncate", "min(pi_trainer / pi_engine, 2) of a token", correction(high=2.0)),
    Case(
        "trl/token_mask",
        "the same ratio, 0 outside of [0.5, 2]",
        correction(mode="mask", low=0.5, high=2.0),
    ),
    Case(
        "trl/sequence_truncate",
        "the ratio of the sequence, at most 3",
        correction(level="sequence", high=3.0),
    ),
    Case(
        "trl/sequence_mask",
        "the ratio of the sequence, 0 above 3",
        correction(level="sequence", mode="mask", high=3.0),
    ),
    Case(
        "trl/whole_loss",
        "the default loss: clip, sequence_mask weights, then + 0.04 rho k3",
        policy(PPO, kl=KLInLoss(0.04, gradient="unbiased"), correction=SEQUENCE_MASK),
    ),
]

VERL = [
    Case("verl/distillation", "log q - log p of each token, q the teacher's", advantage(Distillation())),
    Case(
        "verl/grpo",
        "(r - mean) / (std + 1e-6), std with ddof 1 of the group",
        advantage(GroupRelative(eps=1e-6), rewards=AT_TOKENS),
    ),
    Case("verl/grpo_without_std", "r - mean", advantage(GroupRelative("none"), rewards=AT_TOKENS)),
    Case("verl/rloo", "G / (G - 1) (r - mean)", advantage(LeaveOneOut(), rewards=AT_TOKENS)),
    Case("verl/remax", "return to go - the reward of the greedy response", advantage(ReMax())),
    Case("verl/opo", "r - the mean weighted by lengths", advantage(OPO(), rewards=AT_TOKENS)),
    Case(
        "verl/pass_at_k",
        "the best response's lead over the second; PassAtK is G times it, as its docstring says",
        advantage(PassAtK(G), rewards=AT_TOKENS, factor=1 / G),
    ),
    Case(
        "verl/reinforce_plus_plus",
        "discounted return to go, whitened over tokens; gaps stepped over",
        advantage(ReinforcePlusPlus(gamma=0.9), rewards=AT_TOKENS),
    ),
    Case(
        "verl/reinforce_plus_plus_baseline",
        "r - mean, whitened over tokens",
        advantage(ReinforcePlusPlusBaseline(over="tokens"), rewards=AT_TOKENS),
    ),
    Case(
        "verl/gae",
        "GAE whitened with ddof 1, and the returns; gaps stepped over",
        advantage(GAE(gamma=0.95, lam=0.9, lam_value=0.9), rewards=AT_TOKENS),
    ),
    Case(
        "verl/gdpo",
        "each reward in its group with eps 1e-6, the sum whitened over tokens",
        advantage(GDPO(eps=1e-6, batch_eps=0.0, over="tokens")),
    ),
    Case("verl/whiten", "masked_whiten: (x - mean) / sqrt(var + 1e-8), ddof 1", whitened),
    Case("verl/dual_clip", "vanilla: the clipped surrogate, dual clip 3 always on", policy(DUAL)),
    Case(
        "verl/clip_higher",
        "vanilla with bounds 0.2 and 0.28",
        policy(ClippedSurrogate(clip_high=0.28, dual_clip=3.0)),
    ),
    Case(
        "verl/gspo",
        "the sequence's ratio in token form, mean over sequences",
        policy(WIDE_GSPO, SequenceMean()),
    ),
    Case("verl/gspo_token_mean", "the same with the paper's bounds, mean over tokens", policy(GSPO())),
    Case("verl/cispo", "-sg(clip(rho, 0.8, 1.2)) A logp", policy(CISPO(0.8, 1.2))),
    Case("verl/sapo", "-(4 / tau) sigmoid(tau (rho - 1)) A", policy(SAPO(), SequenceMean())),
    Case(
        "verl/gmpo", "geo_mean: -A times the geometric mean of clipped ratios", policy(GMPO(), SequenceMean())
    ),
    Case("verl/reinforce", "gpg's loss: -A logp", policy(Reinforce())),
    Case(
        "verl/dppo_tv",
        "-sg(min(rho, 3)) A logp, stopped where pi - pi_old is beyond 0.2",
        policy(DPPO(behaviour="old", max_ratio=3.0)),
    ),
    Case(
        "verl/dppo_kl",
        "the same with the two-way KL beyond 0.05",
        policy(DPPO("kl", 0.05, 0.05, behaviour="old", max_ratio=3.0)),
    ),
    Case(
        "verl/clip_cov",
        "the clipped surrogate without all tokens of covariance in (0.2, 0.6)",
        policy(ClipCov(share=1.0, above=0.2, below=0.6)),
    ),
    Case("verl/kl_cov", "-rho A + |log rho| on the fifth of the tokens", policy(KLCov(0.2))),
    Case("verl/token_mean", "sum / tokens", aggregation(TokenMean())),
    Case(
        "verl/seq_mean_token_sum",
        "mean over non-empty sequences of sums; ours without the empty ones, which it divides by",
        aggregation(ConstantLength(1), of_non_empty=True),
    ),
    Case("verl/seq_mean_token_mean", "mean over non-empty sequences of means", aggregation(SequenceMean())),
    Case(
        "verl/seq_mean_token_sum_norm",
        "the sum over a constant length, as above",
        aggregation(ConstantLength(T), of_non_empty=True),
    ),
    Case("trl/gkd", "generalised JSD, beta 0.3", distillation(TeacherKL(divergence="jsd", beta=0.3))),
    Case("trl/gkd_forward", "KL(teacher || policy)", distillation(TeacherKL(divergence="forward"))),
    Case("trl/gkd_reverse", "KL(policy || teacher)", distillation(TeacherKL(divergence="reverse"))),
    Case(
        "trl/distillation_with_tail",
        "KL(teacher || policy) of the teacher's 2 most probable tokens and the rest",
        distillation(TeacherKL(divergence="forward", top_k=2)),
    ),
    Case(
        "verl/forward_kl_topk",
        "its terms of the teacher's 2 most probable tokens",
        distillation(TeacherKL(divergence="forward", top_k=2, rest=False)),
    ),
    Case("verl/kl_k1", "k1", divergence(KLInLoss(1.0, "k1"))),
    Case("verl/kl_k2", "k2", divergence(KLInLoss(1.0, "k2"))),
    Case("verl/kl_k3", "low_var_kl: k3 of d within 20, at most 10", divergence(KLInLoss(1.0, bound=10.0))),
    Case("verl/kl_in_reward", "token reward - 0.001 k1", kl_in_reward),
    Case("verl/kl_controller", "beta *= 1 + clip(KL / target - 1, +-0.2) n / horizon", controller),
    Case("verl/token_truncate", "min(pi_trainer / pi_engine, 2) of a token", correction(high=2.0)),
    Case("verl/sequence_truncate", "the same of the sequence", correction(level="sequence", high=2.0)),
    Case(
        "verl/icepop",
        "the ratio of a token, 0 outside of [0.5, 5]",
        correction(mode="mask", low=0.5, high=5.0),
    ),
    Case("verl/token_normalized", "weights of mean 1", correction(high=2.0, normalize=True)),
    Case(
        "verl/sequence_normalized",
        "the same of sequences",
        correction(level="sequence", high=2.0, normalize=True),
    ),
    *(
        Case(f"verl/reject_{name}", f"{name}: what is kept", kept(ours))
        for name, ours in {
            "token_k1": RatioRejection("token", 0.5, 4.0),
            "token_k2": DivergenceRejection("token", "k2", 0.5),
            "token_k3": DivergenceRejection("token", "k3", 0.5),
            "seq_sum_k1": RatioRejection("sequence", 0.5, 4.0),
            "seq_sum_k2": DivergenceRejection("sum", "k2", 2.0),
            "seq_sum_k3": DivergenceRejection("sum", "k3", 2.0),
            "seq_mean_k1": RatioRejection("geometric", 1 / 1.4, 1.25),
            "seq_mean_k2": DivergenceRejection("mean", "k2", 0.4),
            "seq_mean_k3": DivergenceRejection("mean", "k3", 0.4),
            "seq_max_k2": DivergenceRejection("max", "k2", 1.0),
            "seq_max_k3": DivergenceRejection("max", "k3", 1.0),
            "by_two": CombinedCorrection(
                [RatioRejection("token", 0.5, 4.0), DivergenceRejection("mean", "k3", 0.4)]
            ),
        }.items()
    ),
    Case(
        "verl/bypass",
        "ppo_clip on the sampler's log-probabilities, token_k1 rejection by the policy as it learns",
        bypassed(DUAL, RatioRejection("token", 0.5, 4.0)),
    ),
    Case(
        "verl/value_loss",
        "max of squared errors / 2, values clipped at 0.5",
        critic(ClippedValueLoss(1.0, 0.5)),
    ),
    Case(
        "verl/whole_loss",
        "ppo_loss: dual clip + 0.001 k3 - 0.01 entropy, mean over tokens",
        policy(DUAL, kl=KLInLoss(0.001, bound=10.0), entropy=EntropyBonus(0.01)),
    ),
]

OPENRLHF = [
    Case("openrlhf/group_norm", "(r - mean) / (std + 1e-9)", advantage(GroupRelative(eps=1e-9))),
    Case(
        "openrlhf/group_norm_kl",
        "(r - mean) / (std + 1e-9) less the return to go of 0.01 k1 (at most 10)",
        advantage(GroupRelative(eps=1e-9), kl=KLInReward(0.01, bound=10.0)),
    ),
    Case("openrlhf/rloo", "r - the mean of the others", advantage(LeaveOneOut())),
    Case("openrlhf/dr_grpo", "r - mean", advantage(GroupRelative("none"))),
    Case(
        "openrlhf/reinforce_baseline",
        "r - mean, whitened over tokens with ddof 0",
        advantage(ReinforcePlusPlusBaseline(over="tokens", ddof=0)),
    ),
    Case(
        "openrlhf/reinforce",
        "discounted return to go of r - 0.01 k1 (at most 10), whitened over tokens with ddof 0",
        advantage(ReinforcePlusPlus(gamma=0.9, ddof=0), kl=KLInReward(0.01, bound=10.0)),
    ),
    Case(
        "openrlhf/gae",
        "GAE of r - 0.01 k1 whitened with ddof 0, and the returns",
        advantage(GAE(gamma=0.95, lam=0.9, lam_value=0.9, ddof=0), kl=KLInReward(0.01, bound=10.0)),
    ),
    Case("openrlhf/clip", "the clipped surrogate, mean over tokens", policy(PPO)),
    Case(
        "openrlhf/clip_higher_sequence_mean",
        "bounds 0.2 and 0.28, mean over sequences of means",
        policy(HIGHER, SequenceMean()),
    ),
    Case("openrlhf/dual_clip", "the clipped surrogate with dual clip 3", policy(DUAL)),
    Case("openrlhf/gspo", "the sequence's ratio, mean over sequences", policy(WIDE_GSPO, SequenceMean())),
    Case(
        "openrlhf/token_truncate",
        "weights pi_trainer / pi_engine moved into [0.5, 2]",
        policy(PPO, correction=ImportanceCorrection(low=0.5, high=2.0)),
    ),
    Case("openrlhf/token_mask", "weights that are 0 outside of [0.5, 2]", policy(PPO, correction=MASK)),
    Case("openrlhf/kl_k1", "k1 within 10", divergence(KLInLoss(1.0, "k1", bound=10.0))),
    Case("openrlhf/kl_k2", "k2 at most 10", divergence(KLInLoss(1.0, "k2", bound=10.0))),
    Case("openrlhf/kl_k3", "k3 at most 10", divergence(KLInLoss(1.0, "k3", bound=10.0))),
    Case("openrlhf/kl_controller", "beta *= 1 + clip(KL / target - 1, +-0.2) n / horizon", controller),
    Case(
        "openrlhf/value_loss", "max of squared errors / 2, clipped at 0.5", critic(ClippedValueLoss(1.0, 0.5))
    ),
]

LEFT_OUT = GroupRelative(eps=1e-6, leave_one_out=True)
NEMO_RL = [
    Case("nemo_rl/grpo", "(r - mean) / (std + 1e-6), both of the others, where std > 0", advantage(LEFT_OUT)),
    Case("nemo_rl/grpo_not_left_out", "(r - mean) / (std + 1e-6)", advantage(GroupRelative(eps=1e-6))),
    Case("nemo_rl/grpo_without_std", "r - the mean of the others", advantage(LeaveOneOut())),
    Case(
        "nemo_rl/gdpo",
        "each reward in its group, the sum over the batch without eps",
        advantage(GDPO(eps=1e-6, batch_eps=0.0)),
    ),
    Case(
        "nemo_rl/reinforce_plus_plus_baseline",
        "r - mean, whitened over tokens with ddof 0",
        advantage(ReinforcePlusPlusBaseline(over="tokens", ddof=0)),
    ),
    Case(
        "nemo_rl/reinforce_plus_plus",
        "r, whitened over tokens with ddof 0",
        advantage(ReinforcePlusPlus(ddof=0)),
    ),
    Case(
        "nemo_rl/gae",
        "GAE whitened, and the returns; gaps stepped over",
        advantage(GAE(gamma=0.95, lam=0.9, lam_value=0.9)),
    ),
    Case(
        "nemo_rl/gae_decoupled",
        "the same with a lam of 0.9 for the advantages and 1 for the returns",
        advantage(GAE(gamma=0.95, lam=0.9, lam_value=1.0)),
    ),
    Case(
        "nemo_rl/gae_length_adaptive",
        "the same with 1 - 1 / (0.6 l), at least 0, for the advantages",
        advantage(GAE(gamma=0.95, lam_value=1.0, length_adaptive_alpha=0.6)),
    ),
    Case("nemo_rl/clip", "the clipped surrogate, mean over tokens", policy(PPO)),
    Case("nemo_rl/clip_higher", "the same with bounds 0.2 and 0.28", policy(HIGHER)),
    Case("nemo_rl/dual_clip", "the same with dual clip 3", policy(DUAL)),
    Case("nemo_rl/clip_sequence_mean", "the same, mean over sequences of means", policy(PPO, SequenceMean())),
    Case("nemo_rl/gspo", "the sequence's ratio, mean over sequences", policy(WIDE_GSPO, SequenceMean())),
    Case("nemo_rl/cispo", "-sg(clip(rho, 0.8, 1.2)) A logp", policy(CISPO(0.8, 1.2))),
    Case(
        "nemo_rl/positive_nll",
        "the clipped surrogate + 0.1 times the mean of -logp over responses of positive reward",
        policy(PPO, term=PositiveNLL(0.1)),
    ),
    Case("nemo_rl/reinforce", "disable_ppo_ratio: -A logp", policy(Reinforce())),
    Case(
        "nemo_rl/token_truncate",
        "weights pi_trainer / pi_engine, at most 2",
        policy(PPO, correction=TRUNCATE),
    ),
    Case("nemo_rl/icepop", "weights that are 0 outside of [0.5, 2]", policy(PPO, correction=MASK)),
    Case(
        "nemo_rl/seq_mask_tis",
        "weights of tokens, without responses whose geometric mean is outside of [0.8, 1.4]",
        weighed_and_kept(
            PPO, CombinedCorrection([ImportanceCorrection(high=1e6), RatioRejection("geometric", 0.8, 1.4)])
        ),
    ),
    Case(
        "nemo_rl/whole_loss",
        "on policy, where its exp(l - sg(l)) is our rho: the clip + 0.01 w k3, at most 10",
        policy(PPO, kl=KLInLoss(0.01, gradient="unbiased", bound=10.0)),
    ),
    Case(
        "nemo_rl/value_loss", "max of squared errors / 2, clipped at 0.5", critic(ClippedValueLoss(1.0, 0.5))
    ),
]

UNBOUNDED = {"max_ratio": None}
SKYRL = [
    Case("skyrl/dppo_tv", "-rho A to the engine, 0 beyond 0.2: its gradient", policy(DPPO(**UNBOUNDED))),
    Case(
        "skyrl/dppo_kl",
        "the same with the two-way KL beyond 0.05",
        policy(DPPO("kl", 0.05, 0.05, **UNBOUNDED)),
    ),
    Case("skyrl/kl_cov", "-rho A + |log rho| on the fifth of the tokens", policy(KLCov(0.2))),
    Case("skyrl/max_rl", "(r - mean) / (mean + 1e-6)", advantage(MaxRL(1e-6))),
    Case(
        "skyrl/reject_geometric",
        "responses by the mean log-ratio",
        kept(RatioRejection("geometric", 0.8, 1.4)),
    ),
    Case(
        "skyrl/reject_product",
        "responses by the sum of log-ratios",
        kept(RatioRejection("sequence", 0.5, 4.0)),
    ),
    Case("skyrl/reject_any_token", "responses with a far token", kept(RatioRejection("any_token", 0.3, 9.0))),
    Case("skyrl/reject_token", "far tokens", kept(RatioRejection("token", 0.5, 2.0))),
]

CASES = [*TRL, *VERL, *OPENRLHF, *NEMO_RL, *SKYRL]
