"""Random ragged batches for the parity tables: what both a peer and grpo_pl are fed."""

import torch
from torch import Tensor

from grpo_pl.functional import outcome_rewards

N, G, T = 8, 4, 6
Batch = dict[str, Tensor]
"""Named columns: `[N, T]` about tokens, `[N]` about responses; columns speak about responses alone."""


def random_batch(seed: int) -> Batch:
    """Two groups of four responses of 1 to 6 tokens; noise stands at padding, so that a leak shows.

    Some ratios are outside of every clip, and some divergences from the reference above the 10 nats at which
    three peers bound them; none is so far off that the bounds on log-ratios at 20 act.
    """
    draw = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    lengths = torch.randint(1, T + 1, (N,), generator=draw)
    lengths[0], lengths[5] = T, 1
    mask = torch.arange(T) < lengths[:, None]
    logprobs = -normal(N, T).abs() - 0.1
    rewards = torch.randint(-8, 17, (N,), generator=draw).double() / 8
    return {
        "mask": mask,
        "logprobs": logprobs,
        "old_logprobs": logprobs + 0.8 * normal(N, T),
        "ref_logprobs": logprobs + 1.5 * normal(N, T),
        "sampling_logprobs": logprobs + 0.6 * normal(N, T),
        "entropy": normal(N, T).abs(),
        "advantages": normal(N, 1).expand(N, T).clone(),
        "token_advantages": normal(N, T),
        "values": normal(N, T),
        "old_values": normal(N, T),
        "returns": normal(N, T),
        "group_ids": torch.arange(N) // G,
        "rewards": rewards,
        "token_rewards": outcome_rewards(rewards, mask) + torch.where(mask, 0.3 * normal(N, T), 0.0),
        "correct": torch.randint(0, 2, (N,), generator=draw).double(),
        "format": torch.randint(-4, 5, (N,), generator=draw).double() / 4,
        "greedy": normal(N),
        "scored": torch.ones(N, dtype=torch.bool),
    }


def make_batches() -> dict[str, Batch]:
    """The batches by name; each but the first is made for what its comment says."""
    batches = {"ragged": random_batch(0)}

    batches["silent"] = random_batch(1)  # rewards that are paid at the end, and all equal in a group
    batches["silent"]["rewards"][G:] = 0.75
    batches["silent"]["token_rewards"] = outcome_rewards(
        batches["silent"]["rewards"], batches["silent"]["mask"]
    )

    batches["holes"] = random_batch(2)  # tokens inside of responses that the policy did not choose
    batches["holes"]["mask"][0, 2:4] = False
    batches["holes"]["mask"][2, 1] = False
    batches["holes"]["token_rewards"] *= batches["holes"]["mask"]

    batches["empty"] = random_batch(3)  # a response without a counted token
    batches["empty"]["mask"][2] = False

    batches["unscored"] = random_batch(4)  # responses of unknown reward: one, and all of a group but one
    batches["unscored"]["scored"][[1, 5, 6, 7]] = False

    batches["far"] = random_batch(5)  # log-ratios beyond the bounds at 20
    batches["far"]["old_logprobs"][0, :4] += torch.tensor([25.0, -25.0, 12.0, -12.0])
    batches["far"]["ref_logprobs"][0, :4] += torch.tensor([25.0, -25.0, 12.0, -12.0])

    batches["on_policy"] = random_batch(6)  # the first minibatch of a rollout: the ratio is 1
    batches["on_policy"]["old_logprobs"] = batches["on_policy"]["logprobs"].clone()
    batches["on_policy"]["ref_logprobs"][0, 0] += 4.0

    batches["near"] = random_batch(7)  # so little drift that old and new policy order the tokens alike
    for name in ("old_logprobs", "sampling_logprobs"):
        batches["near"][name] = batches["near"]["logprobs"] + 0.01 * batches["near"]["token_advantages"]

    batches["proper"] = random_batch(8)  # probabilities below 1, for losses that read them
    for name in ("logprobs", "old_logprobs", "sampling_logprobs"):
        batches["proper"][name] = batches["proper"][name].clamp(max=-0.02)
    return batches


def two_distributions(batch: Batch, logprobs: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of a student and a teacher over a vocabulary of four, made of columns; the first is given."""
    others = ("old_logprobs", "sampling_logprobs", "entropy")
    of_teacher = ("ref_logprobs", "token_advantages", "values", "old_values")
    student = torch.stack([logprobs, *(batch[name] for name in others)], -1)
    return student, torch.stack([batch[name] for name in of_teacher], -1)
