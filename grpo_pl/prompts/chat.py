"""From a question to the token ids that the model reads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from jinja2 import TemplateError

from grpo_pl.system.refusal import ArgumentError, ConfigError


@runtime_checkable
class Tokenizer(Protocol):
    """What is used of a `transformers.PreTrainedTokenizerBase`."""

    @property
    def chat_template(self) -> Any:
        """The Jinja template, None where the tokenizer brings none."""

    @property
    def apply_chat_template(self) -> Callable[..., Any]:
        """Conversations to token ids."""

    @property
    def __call__(self) -> Callable[..., Any]:
        """Texts to token ids."""


Messages = list[dict[str, str]]
"""A conversation, each message with `role` and `content`."""


@dataclass(kw_only=True)
class Example:
    """A solved question before the real one. Example: `Example(question="What is 2 + 3?", answer="5")`."""

    question: str
    answer: str


_OWN_KWARGS = frozenset({
    "add_generation_prompt", "continue_final_message", "conversation", "max_length", "padding", "return_dict",
    "return_tensors", "tokenize", "truncation",
})  # fmt: skip


@dataclass(kw_only=True)
class ChatFormat:
    r"""How a question is put to the model: as a chat, or as plain text for a base model.

    Plain text is the parts below, joined by empty lines, the last one left open for the response:

        {system}

        Question: {an example's question}
        Answer: {its answer}

        Question: {question}
        Answer:

    Args:
        system: The system prompt; null leaves it to the chat template, which may have one of its own.
        few_shot: Solved examples, each `{question: ..., answer: ...}`; a chat shows them as earlier turns.
        question_template: Text around `{question}`, other braces are literal; null is `{question}` in a chat
            and `Question: {question}\nAnswer:` in plain text.
        use_chat_template: False writes plain text, with the special tokens that the tokenizer adds by itself.
        template_kwargs: Variables of the chat template, such as `{enable_thinking: false}`; the variable
            `chat_template` replaces the template.
    """

    system: str | None = None
    few_shot: list[Example] = field(default_factory=list)
    question_template: str | None = None
    use_chat_template: bool = True
    template_kwargs: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuses what would fail, or would be ignored, at the first prompt."""
        if self.question_template is not None and "{question}" not in self.question_template:
            raise ArgumentError(f"question_template={self.question_template!r}: expected {{question}} in it")
        if taken := sorted(_OWN_KWARGS & set(self.template_kwargs)):
            raise ArgumentError(f"template_kwargs: expected variables of the chat template, got {taken}")
        if self.template_kwargs and not self.use_chat_template:
            raise ArgumentError("template_kwargs needs a chat template: set use_chat_template to true")

    def messages(self, question: str) -> list[dict[str, str]]:
        """The conversation that ends with the question, each message with `role` and `content`."""
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        for example in self.few_shot:
            messages.append({"role": "user", "content": self._ask(example.question)})
            messages.append({"role": "assistant", "content": example.answer})
        return [*messages, {"role": "user", "content": self._ask(question)}]

    def plain_text(self, question: str) -> str:
        """The same as one text, for models without chat turns."""
        solved = [f"{self._ask(example.question)} {example.answer}" for example in self.few_shot]
        system = [] if self.system is None else [self.system]
        return "\n\n".join([*system, *solved, self._ask(question)])

    def encode(self, question: str | Messages, tokenizer: Tokenizer) -> list[int]:
        """The token ids up to where the response begins; a conversation is put to the model as it is."""
        return self.encode_batch([question], tokenizer)[0]

    def encode_batch(self, questions: Sequence[str | Messages], tokenizer: Tokenizer) -> list[list[int]]:
        """`encode` of each question, faster; refuses those that do not fit the format or the tokenizer."""
        if any(not isinstance(question, str) for question in questions):
            self._check_takes_messages()
        if not self.use_chat_template:
            texts = [self.plain_text(question) for question in questions if isinstance(question, str)]
            return _int_lists(tokenizer(texts, verbose=False)["input_ids"])
        if tokenizer.chat_template is None and "chat_template" not in self.template_kwargs:
            raise ArgumentError(
                "use_chat_template is true but the tokenizer has no chat template: set it to false, or take "
                "an instruction-tuned model",
                self,
            )
        conversations = [self.messages(q) if isinstance(q, str) else q for q in questions]
        try:
            ids = tokenizer.apply_chat_template(
                conversations, add_generation_prompt=True, return_dict=False, **self.template_kwargs
            )
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:  # it computes
            raise ConfigError(
                f"the tokenizer's chat template refuses the messages ({error}); set system, few_shot or "
                "template_kwargs",
                self,
            ) from error
        return _int_lists(ids)

    def _check_takes_messages(self) -> None:
        added = {
            "system": self.system,
            "few_shot": self.few_shot,
            "question_template": self.question_template,
        }
        if said := [name for name, value in added.items() if value]:
            raise ArgumentError(
                f"{said[0]} is for questions, and the data has whole conversations: leave it out", self
            )
        if not self.use_chat_template:
            raise ArgumentError("use_chat_template=false cannot put conversations: set it to true", self)

    def _ask(self, question: str) -> str:
        plain = "{question}" if self.use_chat_template else "Question: {question}\nAnswer:"
        return (plain if self.question_template is None else self.question_template).replace(
            "{question}", question
        )


def _int_lists(rows: Any) -> list[list[int]]:
    return [[int(token) for token in row] for row in rows]
