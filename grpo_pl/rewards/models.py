"""Rewards by trained models, which score whole responses or their steps."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal, cast, final

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, FullyShardedDataParallel
from typing_extensions import override

from grpo_pl.functional import batches_within, pad_rows
from grpo_pl.models.builder import Place
from grpo_pl.models.folders import resolve_pretrained
from grpo_pl.models.loading import RewardKind
from grpo_pl.models.reward_model import EncodedResponse, RewardModel
from grpo_pl.rewards.base import ProcessReward, RewardFunction
from grpo_pl.rewards.patterns import compiled
from grpo_pl.rewards.steps import step_ends
from grpo_pl.system.collectives import most_on_any_rank
from grpo_pl.system.precision import OpenDType, chosen_dtype
from grpo_pl.system.refusal import ArgumentError, ConfigError, check_at_least
from grpo_pl.types import Sample, StepScore


class _ModelReward(RewardFunction):
    """A reward by a trained model that only scores: without gradient, in no checkpoint.

    Args:
        pretrained: Model folder or hub name of a reward model; `--pretrained` is not used here.
        dtype: Type of the weights; "auto" takes what the trainer computes in.
        batch_tokens: The most tokens, padding included, that it reads at once; a longer response is read
            alone.
    """

    kind: ClassVar[RewardKind]
    """What the model was trained to score."""

    def __init__(
        self, pretrained: str, dtype: OpenDType = "float32", batch_tokens: int = 16384, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        if not pretrained:
            raise ArgumentError(
                f"pretrained={pretrained!r}: expected the name of an {self.kind} reward model, never the "
                "policy's"
            )
        resolve_pretrained(pretrained)  # a wrong folder is refused before any model is loaded
        check_at_least(1, batch_tokens=batch_tokens)
        self.pretrained, self.dtype, self.batch_tokens = pretrained, dtype, batch_tokens
        self.model: RewardModel | None = None

    @override
    def build(self, place: Place) -> None:
        """Load the model where it belongs; refuses one that was not trained to score."""

        def frozen() -> RewardModel:
            model = RewardModel.load(self.pretrained, self.kind, chosen_dtype(self.dtype))
            if model.new_head:
                raise ArgumentError(
                    f"pretrained={self.pretrained} holds no {self.kind} reward model, so that its score head "
                    f"would be random: give a checkpoint with a trained one"
                )
            return model.requires_grad_(False).eval()

        self.model = cast(RewardModel, place(frozen))

    @property
    @override
    def held_model(self) -> nn.Module | None:
        return self.model

    @property
    @override
    def tokens_at_once(self) -> int:
        return self.batch_tokens

    @torch.no_grad()
    def token_scores(self, samples: Sequence[Sample]) -> list[tuple[EncodedResponse, Float[Tensor, "_"]]]:
        """Each sample's tokens and the score after each of them; equal ones are read once."""
        assert self.model is not None, "build() comes first"
        device = next(self.model.parameters()).device
        encoded = [self.model.encode(s.prompt.messages or s.prompt.text, s.response) for s in samples]
        different = list(dict.fromkeys(tuple(sequence.token_ids) for sequence in encoded))
        lengths = [len(token_ids) for token_ids in different]
        if max(lengths, default=0) > (context := self.model.encode.context):
            raise ConfigError(
                f"prompt and response are {max(lengths)} tokens to the reward model, which reads {context}: "
                "lower data.sampling.max_tokens, or set on_error to abstain"
            )
        scores: dict[tuple[int, ...], Tensor] = {}
        batches = batches_within(lengths, self.batch_tokens)
        idle = 0
        if isinstance(self.model, FSDPModule | FullyShardedDataParallel):  # each rank runs it equally often
            idle = most_on_any_rank(len(batches), device) - len(batches)
        for rows in batches:
            token_ids = pad_rows([torch.tensor(different[row]) for row in rows], lengths[rows[0]])
            real = torch.tensor([lengths[row] for row in rows])
            read = self.model(token_ids.to(device), real.to(device)).cpu()
            scores |= {different[row]: of_row[: lengths[row]] for row, of_row in zip(rows, read, strict=True)}
        blank = torch.zeros((1, 1), dtype=torch.long, device=device)
        for _ in range(idle):
            self.model(blank, torch.ones(1, dtype=torch.long, device=device))
        return [(sequence, scores[tuple(sequence.token_ids)]) for sequence in encoded]


@final
class OutcomeRewardModel(_ModelReward):
    """The score that a trained model gives a whole response: a sequence classifier with one label.

    Rewards of Bradley-Terry models are logits without a natural zero or unit (Ouyang et al. 2022, arXiv
    2203.02155, section 3.5); `link: sigmoid` bounds them to (0, 1).

    Args:
        pretrained: Model folder or hub name of a reward model; `--pretrained` is not used here.
        link: Function of the score: `none` or `sigmoid`.
    """

    kind = "outcome"

    def __init__(self, pretrained: str, link: Literal["none", "sigmoid"] = "none", **kwargs: Any) -> None:
        super().__init__(pretrained, **kwargs)
        self.link = link

    @override
    def score(self, samples: Sequence[Sample]) -> list[float]:
        last = [scores[-1] for _, scores in self.token_scores(samples)]
        return [(score.sigmoid() if self.link == "sigmoid" else score).item() for score in last]


@final
class ProcessRewardModel(_ModelReward, ProcessReward):
    r"""The probability that a step is right, by a trained model: a token classifier with one label.

    A step's score is the sigmoid of the logit at the step's last token (Lightman et al. 2023, arXiv
    2305.20050, section 2.6). Over a response we sum, where they multiply to rank solutions.

    Args:
        pretrained: Model folder or hub name of a reward model; `--pretrained` is not used here.
        steps: Regular expression of the separator between steps, as the model was trained with.
    """

    kind = "process"

    def __init__(self, pretrained: str, steps: str = r"\n+", **kwargs: Any) -> None:
        super().__init__(pretrained, **kwargs)
        self._separator = compiled("steps", steps)

    @override
    def score_steps(self, samples: Sequence[Sample]) -> list[list[StepScore]]:
        return [
            [
                StepScore(end, scores[encoded.last_token(end)].sigmoid().item())
                for end in step_ends(sample.response, self._separator)
            ]
            for sample, (encoded, scores) in zip(samples, self.token_scores(samples), strict=True)
        ]
