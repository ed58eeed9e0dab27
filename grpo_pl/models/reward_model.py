"""Reward models: a trained model's score of a response, or of each of its steps."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from jaxtyping import Float, Int
from jinja2 import TemplateError
from torch import Tensor, nn
from typing_extensions import override

from grpo_pl.models.conversation import as_text
from grpo_pl.models.heads import float32_scores
from grpo_pl.models.loading import RewardKind, context_length, load_reward_model, load_tokenizer
from grpo_pl.system.atomic_files import partial_of, remove
from grpo_pl.system.precision import DType
from grpo_pl.system.refusal import ArgumentError, ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_RESPONSE = "<<<response>>>"
"""Placeholder that shows where the chat template puts the response."""


class EncodedResponse(NamedTuple):
    """A prompt and its response as a reward model reads them.

    Example: the prompt "Hi" and the response "a b" as plain text, in tokens "Hi", a line end, "a" and " b":
    `token_ids=[40, 2, 7, 9]`, `spans=[(-3, -1), (-1, 0), (0, 1), (1, 3)]`.
    """

    token_ids: list[int]
    spans: list[tuple[int, int]]
    """The characters of each token, (begin, end), counted from the begin of the response: negative in the
    prompt. Tokens that the tokenizer adds have no characters: begin equals end."""

    def last_token(self, end: int) -> int:
        """The last token that holds one of the first `end` characters of the response.

        This is where a step that ends at `end` is scored.
        """
        return max(i for i, (first, last) in enumerate(self.spans) if first < last and first < end)


class ResponseEncoder:
    """Encodes a prompt and its response for a reward model; `context` is the model's, in tokens."""

    def __init__(self, tokenizer: Any, context: int) -> None:
        self.tokenizer, self.context = tokenizer, context

    @classmethod
    def load(cls, pretrained: str) -> "ResponseEncoder":
        """The encoder of a model folder or hub name; refuses tokenizers that give no offsets."""
        tokenizer = load_tokenizer(pretrained)
        if not tokenizer.is_fast:
            raise ArgumentError(
                f"pretrained={pretrained} has a tokenizer without offsets: give a model with a tokenizer.json"
            )
        return cls(tokenizer, context_length(pretrained))

    def __call__(self, prompt: str | Sequence[Mapping[str, str]], response: str) -> EncodedResponse:
        """The tokens of a prompt, a user's text or a whole conversation, and its response, not truncated.

        With a chat template the response is the assistant's turn behind the prompt's, unchanged even where
        the template would trim it or cut its reasoning out. Without a template the text is the prompt, a line
        end and the response.
        """
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        before, after = f"{as_text(messages)}\n", ""
        templated = self.tokenizer.chat_template is not None
        if templated:
            turns = [*messages, {"role": "assistant", "content": _RESPONSE}]
            try:
                whole = self.tokenizer.apply_chat_template(turns, tokenize=False)
            except TemplateError as error:
                roles = ", ".join(message["role"] for message in turns)
                raise ConfigError(
                    f"the chat template of the reward model refuses messages of {roles} ({error}): give a "
                    "reward model that reads the data's conversations"
                ) from error
            before, _, after = whole.rpartition(_RESPONSE)
        encoded = self.tokenizer(
            before + response + after, add_special_tokens=not templated, return_offsets_mapping=True
        )
        start = len(before)
        spans = [(a - start, b - start) if a < b else (0, 0) for a, b in encoded["offset_mapping"]]
        return EncodedResponse(encoded["input_ids"], spans)


class RewardModel(nn.Module):
    """A causal model with a linear head: a score after each token, given the tokens up to it.

    An outcome model scores a response after its last token, a process model a step by the logit after the
    step's last token. The scores after other tokens mean nothing. The model, from
    `load_reward_model`, has a trunk `base_model` and a head `score`; before training, the scores of a
    `new_head` mean nothing.
    """

    def __init__(self, model: "PreTrainedModel", encode: ResponseEncoder, new_head: bool) -> None:
        super().__init__()
        self.model, self.encode, self.new_head = model, encode, new_head

    @classmethod
    def load(
        cls, pretrained: str, kind: RewardKind, dtype: DType, attention: str | None = None
    ) -> "RewardModel":
        """The reward model of a folder or hub name, on the CPU."""
        model, new_head = load_reward_model(pretrained, kind, dtype, attention)
        return cls(model, ResponseEncoder.load(pretrained), new_head)

    @property
    def head(self) -> nn.Linear:
        """The layer that turns a state into a score."""
        return cast(nn.Linear, self.model.score)

    def save(self, folder: Path, weights: Mapping[str, Tensor]) -> None:
        """Write a checkpoint that `load` and transformers read; replaces the folder at once.

        `weights` are whole, under the names of `model`.
        """
        partial = partial_of(folder)
        self.model.save_pretrained(partial, state_dict=dict(weights))
        self.encode.tokenizer.save_pretrained(partial)
        remove(folder)
        partial.replace(folder)

    @override
    def forward(self, token_ids: Int[Tensor, "B T"], lengths: Int[Tensor, "B"]) -> Float[Tensor, "B T"]:
        """The score after each of the first `lengths` tokens of a row, float32; zero on the padding.

        Padding stands on the right, where causal attention needs no mask, so any token may fill it.
        """
        trunk = cast("PreTrainedModel", self.model.base_model)
        hidden = trunk(input_ids=token_ids, use_cache=False).last_hidden_state
        scores = float32_scores(self.head, hidden)
        real = torch.arange(token_ids.shape[1], device=token_ids.device) < lengths[:, None]
        return torch.where(real, scores, 0.0)
