"""Prompts: sources of questions, the chat format, the encoded set and the order of visits.

`PromptSource` (rows of text) -> `ChatFormat` (messages, token ids) -> `PromptSet` (length policy) ->
`iteration_prompts` (which rank sees which prompt in which iteration), or `Visits` with a `Curriculum`.
"""

from grpo_pl.prompts.chat import ChatFormat, Example, Tokenizer
from grpo_pl.prompts.curriculum import Curriculum, DifficultyWindow, NoPositiveResampling
from grpo_pl.prompts.pass_rates import PassRates, Right
from grpo_pl.prompts.procedural import Arithmetic, ReasoningGym
from grpo_pl.prompts.prompt_set import PromptSet, iteration_prompts
from grpo_pl.prompts.sources import JSONL, HuggingFaceDataset, PromptSource, Question
from grpo_pl.prompts.worked_sums import WorkedSums

__all__ = [
    "JSONL",
    "Arithmetic",
    "ChatFormat",
    "Curriculum",
    "DifficultyWindow",
    "Example",
    "HuggingFaceDataset",
    "NoPositiveResampling",
    "PassRates",
    "PromptSet",
    "PromptSource",
    "Question",
    "ReasoningGym",
    "Right",
    "Tokenizer",
    "WorkedSums",
    "iteration_prompts",
]
