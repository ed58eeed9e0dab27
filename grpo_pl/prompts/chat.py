"""From a question to the token ids that the model reads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

from jinja2 import TemplateError

from grpo_pl.system.refusal import ArgumentError, ConfigError


@runtime_checkable
class Tokenizer(Protocol):
    """The part of `transformers.PreTrainedTokenizerBase` that prompts need."""

    @property
    def chat_template(self) -> Any:
        """The Jinja template; None without one."""

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
    r"""How a question becomes a prompt: as a chat, or as plain text for a base model.

    Plain text joins the parts below by empty lines and ends where the response begins:

        {system}

        Question: {an example's question}
        Answer: {its answer}

        Question: {question}
        Answer:

    Args:
        system: The system prompt; null leaves it to the chat template, which may have its own.
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
        """Refuse settings that would fail or be ignored at the first prompt."""
        if self.question_template is not None and "{question}" not in self.question_template:
            raise ArgumentError(f"question_template={self.question_template!r}: expected {{question}} in it")
        if taken := sorted(_OWN_KWARGS & set(self.template_kwargs)):
            raise ArgumentError(f"template_kwargs: expected variables of the chat template, got {taken}")
        if self.template_kwargs and not self.use_chat_template:
            raise ArgumentError("template_kwargs needs a chat template: set use_chat_template to true")

    def messages(self, question: str) -> Messages:
        """The conversation that ends with the question."""
        messages = [] if self.system is None else [{"role": "system", "content": self.system}]
        for example in self.few_shot:
            messages.append({"role": "user", "content": self._ask(example.question)})
            messages.append({"role": "assistant", "content": example.answer})
        return [*messages, {"role": "user", "content": self._ask(question)}]

    def plain_text(self, question: str) -> str:
        """The prompt as one text, for models without chat turns."""
        solved = [f"{self._ask(example.question)} {example.answer}" for example in self.few_shot]
        system = [] if self.system is None else [self.system]
        return "\n\n".join([*system, *solved, self._ask(question)])

    def encode(self, question: str | Messages, tokenizer: Tokenizer) -> list[int]:
        """The token ids up to the response; a conversation is taken as it is."""
        return self.encode_batch([question], tokenizer)[0]

    def encode_batch(self, questions: Sequence[str | Messages], tokenizer: Tokenizer) -> list[list[int]]:
        """`encode` of each question, faster; refuses those that do not fit the format or the tokenizer."""
        if any(not isinstance(question, str) for question in questions):
            self._check_takes_messages()
        if not self.use_chat_template:
            texts = [self.plain_text(question) for question in questions if isinstance(question, str)]
            return [list(ids) for ids in tokenizer(texts, verbose=False)["input_ids"]]
        if tokenizer.chat_template is None and "chat_template" not in self.template_kwargs:
            raise ArgumentError(
                "use_chat_template is true but the tokenizer has no chat template: set it to false, or take "
                "an instruction-tuned model",
                self,
            )
        conversations = [self.messages(q) if isinstance(q, str) else q for q in questions]
        try:
            rows = tokenizer.apply_chat_template(
                conversations, add_generation_prompt=True, return_dict=False, **self.template_kwargs
            )
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:  # it computes
            raise ConfigError(
                f"the tokenizer's chat template refuses the messages ({error}); set system, few_shot or "
                "template_kwargs",
                self,
            ) from error
        return [list(ids) for ids in rows]

    def _check_takes_messages(self) -> None:
        for name in ("system", "few_shot", "question_template"):
            if getattr(self, name):
                raise ArgumentError(
                    f"{name} is for questions, and the data has whole conversations: leave it out", self
                )
        if not self.use_chat_template:
            raise ArgumentError("use_chat_template=false cannot put conversations: set it to true", self)

    def _ask(self, question: str) -> str:
        plain = "{question}" if self.use_chat_template else "Question: {question}\nAnswer:"
        return (plain if self.question_template is None else self.question_template).replace(
            "{question}", question
        )
