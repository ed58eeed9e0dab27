"""The vocabulary of the RL loop, in the order in which data flows through it.

Dimensions, used in every shape of the project:

    P   prompts of one iteration on this data-parallel rank
    G   responses sampled for each prompt (the group)
    N   sequences, N = P * G, the G responses of one prompt side by side
    B   sequences of one micro-batch, B <= N
    T   padded sequence length: prompt, then response, then padding on the right
    V   vocabulary

Every per-token tensor is `[N, T]` and aligned with `token_ids`: entry `[n, t]` speaks about token `t` given
the tokens before it. Padding stands on the right, so under causal attention no token ever sees it and no
attention mask is needed.

Example, one prompt `[5, 6]` with the two responses `[7, 2]` and `[8]`:

    token_ids   [[5, 6, 7, 2], [5, 6, 8, 0]]
    loss_mask   [[0, 0, 1, 1], [0, 0, 1, 0]]
    group_ids   [0, 0]
"""

from importlib import import_module
from typing import TYPE_CHECKING

from grpo_pl.types.dialogue import STOPS, Call, Message, Outcome, Said, Stop, Turn, in_words
from grpo_pl.types.prompt import Prompt

if TYPE_CHECKING:
    from grpo_pl.types.experience import (
        Credit,
        Experience,
        Feedback,
        SampleRecord,
        Sequences,
        TokenLoss,
        TokenScores,
        only_here,
    )
    from grpo_pl.types.rollout import Rollout, Sample, ScoredSamples, StepScore
else:

    def __getattr__(name: str) -> object:
        """Import what holds tensors when it is asked for: the processes of environments import no torch."""
        if name in __all__:
            for module in map(import_module, ("grpo_pl.types.rollout", "grpo_pl.types.experience")):
                if name in vars(module):
                    return vars(module)[name]
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "STOPS",
    "Call",
    "Credit",
    "Experience",
    "Feedback",
    "Message",
    "Outcome",
    "Prompt",
    "Rollout",
    "Said",
    "Sample",
    "SampleRecord",
    "ScoredSamples",
    "Sequences",
    "StepScore",
    "Stop",
    "TokenLoss",
    "TokenScores",
    "Turn",
    "in_words",
    "only_here",
]
