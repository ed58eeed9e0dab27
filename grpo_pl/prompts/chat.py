"""From a question to the token ids that the model reads."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import date as Date
from itertools import takewhile
from typing import Any, Protocol, runtime_checkable

from jinja2 import TemplateError

from grpo_pl.prompts.openings import opened_by_template, opened_by_text
from grpo_pl.prompts.rows import Messages
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
    def decode(self) -> Callable[..., Any]:
        """Token ids to text."""

    @property
    def bos_token_id(self) -> int | None:
        """The token that begins a text."""

    @property
    def __call__(self) -> Callable[..., Any]:
        """Texts to token ids."""


@dataclass(kw_only=True)
class Example:
    """A solved question before the real one. Example: `Example(question="What is 2 + 3?", answer="5")`."""

    question: str
    answer: str


_OWN_KWARGS = frozenset({
    "add_generation_prompt", "continue_final_message", "conversation", "max_length", "padding", "return_dict",
    "return_tensors", "strftime_now", "tokenize", "truncation",
})  # fmt: skip
_QUESTION, _ANSWER = "the-question", "the-answer"
"""Placeholders that show where a template puts them."""


@dataclass(frozen=True)
class Layout:
    """What a format puts behind the question, up to the response."""

    asked: str
    """In a prompt."""
    closed: str
    """Without the begin of the response: where it is as long, the template begins none."""
    answered: str | None
    """Between question and answer of a conversation with both; None where the template refuses it."""

    @property
    def opened(self) -> str:
        """The part of the prompt that the response continues, such as `<think>`."""
        known = self.answered is not None
        return opened_by_template(self.asked, self.answered or "") if known else opened_by_text(self.asked)

    @property
    def missing(self) -> str:
        """What begins a response in this template, where prompts end without it."""
        begun, answered = self.asked.rstrip(), (self.answered or "").rstrip()
        ignored = self.asked == self.closed and answered.startswith(begun)
        return answered.removeprefix(begun).strip() if ignored else ""


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
        use_chat_template: False writes plain text, with the special tokens that the tokenizer puts before a
            text by itself; those that it puts behind are left out, for the response goes on there.
        template_kwargs: Variables of the chat template, such as `{enable_thinking: false}`; the variable
            `chat_template` replaces the template.
        date: The day that a chat template shows which asks for today's, such as `2026-01-31`, so that a run
            has the same prompts when it is resumed on another day; null is today.
    """

    system: str | None = None
    few_shot: list[Example] = field(default_factory=list)
    question_template: str | None = None
    use_chat_template: bool = True
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    date: str | None = None

    def __post_init__(self) -> None:
        """Refuse settings that would fail or be ignored at the first prompt."""
        if self.question_template is not None and "{question}" not in self.question_template:
            raise ArgumentError(f"question_template={self.question_template!r}: expected {{question}} in it")
        if taken := sorted(_OWN_KWARGS & set(self.template_kwargs)):
            raise ArgumentError(f"template_kwargs: expected variables of the chat template, got {taken}")
        if self.template_kwargs and not self.use_chat_template:
            raise ArgumentError("template_kwargs needs a chat template: set use_chat_template to true")
        try:
            self._day = None if self.date is None else Date.fromisoformat(self.date)
        except ValueError as error:
            raise ArgumentError(f"date={self.date}: expected a day such as 2026-01-31") from error

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
            end = -len(appended_tokens(tokenizer)) or None
            return [list(ids[:end]) for ids in tokenizer(texts, verbose=False)["input_ids"]]
        if tokenizer.chat_template is None and "chat_template" not in self.template_kwargs:
            raise ArgumentError(
                "use_chat_template is true but the tokenizer has no chat template: set it to false, or take "
                "an instruction-tuned model",
                self,
            )
        conversations = [self.messages(q) if isinstance(q, str) else q for q in questions]
        return [list(ids) for ids in self.render(conversations, tokenizer, return_dict=False)]

    def layout(self, tokenizer: Tokenizer, system: str | None = None) -> Layout:
        """How the prompts of this format end; `system` is the system message of a conversation of the data.

        Refuses a chat template that leaves the question out.
        """
        if not self.use_chat_template:
            tail = self.plain_text(_QUESTION).rpartition(_QUESTION)[2]
            return Layout(tail, "", None)
        asking = self.messages(_QUESTION)
        if system is not None:
            asking.insert(0, {"role": "system", "content": system})
        (text,) = self.render([asking], tokenizer, tokenize=False)
        (closed,) = self.render([asking], tokenizer, tokenize=False, add_generation_prompt=False)
        if _QUESTION not in text:
            raise ConfigError(
                "the tokenizer's chat template leaves the question out, as some of models for images do, "
                "which expect lists of parts: give a template for text as template_kwargs.chat_template",
                self,
            )
        solved = [*asking, {"role": "assistant", "content": _ANSWER}]
        try:
            (whole,) = self.render([solved], tokenizer, tokenize=False, add_generation_prompt=False)
        except ConfigError:
            whole = ""
        between, found, _ = whole.rpartition(_QUESTION)[2].partition(_ANSWER)
        asked, closed = (part.rpartition(_QUESTION)[2] for part in (text, closed))
        return Layout(asked, closed, between if found else None)

    def shows_today(self, tokenizer: Tokenizer) -> bool:
        """Whether the chat template writes today's date into prompts."""
        if not self.use_chat_template or self._day is not None:
            return False
        asking = [self.messages(_QUESTION)]
        days = Date(2001, 2, 3), Date(2012, 11, 10)
        texts = [self.render(asking, tokenizer, tokenize=False, strftime_now=day.strftime) for day in days]
        return bool(texts[0] != texts[1])

    def render(
        self, conversations: Sequence[Sequence[dict[str, Any]]], tokenizer: Tokenizer, **options: Any
    ) -> Any:
        """What the tokenizer makes of conversations by its chat template."""
        day = {} if self._day is None else {"strftime_now": self._day.strftime}
        options = {"add_generation_prompt": True} | self.template_kwargs | day | options
        try:
            return tokenizer.apply_chat_template(conversations, **options)
        except (TemplateError, ArithmeticError, LookupError, TypeError, ValueError) as error:  # it computes
            raise ConfigError(
                f"the tokenizer's chat template refuses the messages ({error}); set system, few_shot or "
                "template_kwargs",
                self,
            ) from error

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


def appended_tokens(tokenizer: Tokenizer) -> list[int]:
    """The special tokens that a tokenizer puts behind every text, such as the end of the sequence."""
    encoded = tokenizer("x", return_special_tokens_mask=True)
    marked = zip(reversed(encoded["input_ids"]), reversed(encoded["special_tokens_mask"]), strict=True)
    return [token for token, _ in takewhile(lambda pair: pair[1], marked)][::-1]
