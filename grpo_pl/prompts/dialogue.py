"""An episode as a chat, exact to the token: what was sampled stays, what an environment says is added."""

from collections.abc import Callable, Container, Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

from grpo_pl.prompts.calls import CallFormat
from grpo_pl.prompts.chat import ChatFormat, Tokenizer
from grpo_pl.prompts.harmless import harmless_encoder
from grpo_pl.prompts.openings import split_thinking
from grpo_pl.prompts.tool_format import with_tools
from grpo_pl.system.refusal import ConfigError
from grpo_pl.types import Message, Prompt, Said

_QUESTION, _ANSWER, _RESULT = "the-question-58129", "the-answer-31470", "the-result-90263"
"""Placeholders that show where a template puts them."""
_TEMPLATE = "give another as data.format.template_kwargs.chat_template"
_USE_TAG = (
    "set data.episodes.call_format to Tag, which describes tools in the system message and gives their "
    "results in messages of the user"
)


class ChatDialogue:
    """Puts the turns of policy and environment into the chat template of a tokenizer.

    What the environment says is encoded once, as what the template writes for it behind a fixed conversation:
    a question and an answer. So nothing is encoded again that was sampled, and each prompt of an episode
    begins with the one before it and the response to it.

    Args:
        tokenizer: Stays as it is, and may be used by other threads.
        format: Its template must mark turns by control tokens.
        calls: How the policy calls tools, which it is shown where `tools` are given.
        tools: JSON schemas, as chat templates take them; without any, nothing is read as a call.
        eos: The tokens that end a turn of the policy.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        format: ChatFormat,
        calls: CallFormat,
        tools: Sequence[Message],
        eos: Container[int],
    ) -> None:
        if not format.use_chat_template:
            raise ConfigError("data.format.use_chat_template=false: data.environment needs turns, set true")
        self._tokenizer, self._calls, self._tools = tokenizer, calls, list(tools)
        self._plain, self._format = format, with_tools(format, calls, tools)
        self._eos = eos
        template = format.template_kwargs.get("chat_template") or tokenizer.chat_template
        self._encoder = harmless_encoder(tokenizer, str(template))
        self._description = calls.describe(tools) if tools else None
        self._answers_calls = False
        self._begin = format.messages(_QUESTION)
        self._check_tools()
        self._ends = {role: self._end_tokens(role) for role in ("user", *["tool"] * self._by_template)}
        """How many control tokens stand between an answer and a message of the role."""

    @property
    def _by_template(self) -> bool:
        """Whether the chat template shows tools and their results."""
        return bool(self._tools) and self._description is None

    def asked(self, prompt: Prompt) -> list[Message]:
        """The messages of a prompt as `open` takes them."""
        whole = prompt.messages if len(prompt.messages) > 1 else self._plain.messages(prompt.text)[-1:]
        return [dict(message) for message in whole]

    def open(self, messages: Sequence[Message]) -> list[int]:
        """The first prompt of an episode: system message and examples of the format, then these messages.

        Messages that begin with a system message are the whole. The tools are described.
        """
        own = messages[0]["role"] == "system"
        whole = [*([] if own else self._begin[:-1]), *self._masked(messages)]
        return self._encoder.encode(self._render(whole))

    def between(self, said_ids: Sequence[int], messages: Sequence[Message]) -> list[int]:
        """What stands between a sampled turn and the next one, without what the turn has written itself.

        The end of the turn where it was not sampled, the messages, and the header of the next turn.
        """
        said = self._masked(messages)
        ids = self._encoder.encode(self._behind_an_answer(said))
        ends = self._ends.get(said[0]["role"], 0) if said else 1
        control = [i for i, token in enumerate(ids) if token in self._encoder.control][:ends]
        last = said_ids[-1] if said_ids else None
        written = [i + 1 for i in control if ids[i] == last and last in self._eos]
        return ids[written[0] if written else 0 :]

    def read(self, token_ids: Sequence[int], opened: str = "") -> Said:
        """What the policy has said in a turn that began with `opened`, a part of the prompt."""
        ends = bool(token_ids) and token_ids[-1] in self._eos
        raw = self.decode(token_ids[: len(token_ids) - ends])
        thinking, text = split_thinking(opened + raw)
        text, attempts = self._calls.parse(text, self._tools) if self._tools else (text, [])
        return Said(text=text.strip(), thinking=thinking, attempts=tuple(attempts), raw=raw)

    def decode(self, token_ids: Sequence[int]) -> str:
        """The text of tokens, with the control tokens among them."""
        ids = list(token_ids)
        text: str = self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text

    @cached_property
    def changes(self) -> list[str]:
        """How the chat template changes its past, for each kind of conversation that it takes.

        P: the prompt is not how the longer conversation begins. A: prompt and response together are not.
        Example: `["second question + thinking: A"]` where thoughts are dropped when the next question comes.
        """
        kinds = {}
        for kind, (answer, follow) in self._conversations().items():
            try:
                asked = self._render(self._begin)
                said = self._render([*self._begin, answer], add_generation_prompt=False)
                whole = self._render([*self._begin, answer, follow])
            except ConfigError:
                continue
            kept = whole.startswith(said) and answer["content"] in whole
            kinds[kind] = "P" * (not whole.startswith(asked)) + "A" * (not kept)
        return [f"{kind}: {change}" for kind, change in kinds.items() if change]

    @cached_property
    def shows_results(self) -> bool:
        """Whether the template shows results of tools behind calls in plain text, as forked rows have."""
        if not self._by_template:
            return True
        said = {"role": "assistant", "content": _ANSWER}
        try:
            return _RESULT in self._render([*self._begin, said, self._result])
        except ConfigError:
            return False

    def _conversations(self) -> dict[str, tuple[Message, Message]]:
        """A turn of the policy and what follows it, with and without thinking."""
        answer, user = {"role": "assistant", "content": _ANSWER}, {"role": "user", "content": _RESULT}
        thought = {"reasoning_content": "a thought", "thinking": "a thought"}
        written = answer | {"content": f"<think>\na thought\n</think>\n\n{_ANSWER}"}
        found = {"second question": (answer, user), "second question + thinking": (answer | thought, user)}
        found |= {"second question + written thinking": (written, user)}
        if self._by_template:
            call = _calling([self._result])
            found = {"tool": (call, self._result), "tool + thinking": (call | thought, self._result)} | found
        return found

    @property
    def _result(self) -> Message:
        return {"role": "tool", "name": self._tools[0]["function"]["name"], "content": _RESULT}

    def _masked(self, messages: Sequence[Message]) -> list[Message]:
        """Messages of which nothing becomes a control token, in the roles that the template is given."""
        masked = []
        for message in messages:
            if not isinstance(message["content"], str):
                raise ConfigError(f"a message has content {message['content']!r:.100}: expected a text")
            mask = self._encoder.mask_special if message["role"] == "assistant" else self._encoder.mask
            masked.append(_each_text(message, mask) | {"role": message["role"]})
        return masked if self._by_template else _as_users(masked)

    def _render(self, messages: Sequence[Message], **options: Any) -> str:
        """What the template makes of a conversation that shows the tools."""
        text: str = self._format.render([messages], self._tokenizer, tokenize=False, **options)[0]
        return text

    def _behind_an_answer(self, messages: Sequence[Message]) -> str:
        """What the template writes behind an answer: its end, the messages, the header of the next turn."""
        if not (self._answers_calls and messages and messages[0]["role"] == "tool"):
            answer = {"role": "assistant", "content": _ANSWER}
            return self._render([*self._begin, answer, *messages]).partition(_ANSWER)[2]
        begin = [*self._begin, _calling(messages)]
        asked = self._render(self._begin, add_generation_prompt=False)
        said = self._render(begin, add_generation_prompt=False)
        ends = [at for at, token in self._encoder.markers(said) if at >= len(asked) and token in self._eos]
        end = ends[-1] if ends else len(said)
        whole = self._render([*begin, *messages])
        return whole[end:] if whole.startswith(said[:end]) else ""

    def _check_tools(self) -> None:
        """Refuse a template that does not show the tools."""
        plain = self._plain.render([self._begin], self._tokenizer, tokenize=False)[0]
        if self._tools and self._render(self._begin) == plain:
            raise ConfigError(f"the tokenizer's chat template does not show tools: {_USE_TAG}")

    def _end_tokens(self, role: str) -> int:
        """How many control tokens stand between an answer and a message of a role.

        Refuses a template without such messages, and one where nothing but plain text ends them.
        """
        message = self._result if role == "tool" else {"role": role, "content": _RESULT}
        head, found, tail = "", "", ""
        try:
            head, found, tail = self._behind_an_answer([message]).partition(_RESULT)
        except ConfigError:
            if role != "tool":
                raise
        if not found and role == "tool" and not self._answers_calls:
            self._answers_calls = True
            return self._end_tokens(role)
        if not found:
            fix = _USE_TAG if role == "tool" else _TEMPLATE
            raise ConfigError(f"the tokenizer's chat template takes no message of role {role}: {fix}")
        if not self._encoder.markers(tail):
            raise ConfigError(
                f"the tokenizer's chat template ends messages of role {role} by plain text alone, "
                f"{tail!r:.80}, which an environment could write too: {_TEMPLATE}"
            )
        return len(self._encoder.markers(head))


def _as_users(messages: Sequence[Message]) -> list[Message]:
    """The same with results of tools, and what is said beside them, in one message of the user."""
    joined: list[Message] = []
    for _, group in groupby(messages, lambda message: message["role"] in ("user", "tool")):
        said = list(group)
        content = "\n".join(message["content"] for message in said)
        by_tools = any(message["role"] == "tool" for message in said)
        joined += [{"role": "user", "content": content}] if by_tools else said
    return joined


def _each_text(value: Any, change: Callable[[str], str]) -> Any:
    """The value with each text in it changed."""
    if isinstance(value, dict):
        return {key: _each_text(item, change) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_each_text(item, change) for item in value]
    return change(value) if isinstance(value, str) else value


def _calling(results: Sequence[Message]) -> Message:
    """A turn of the policy with a call for each result."""
    names = [result.get("name", "tool") for result in results if result["role"] == "tool"]
    calls = [
        {"type": "function", "id": f"call{i:05}", "function": {"name": name, "arguments": {}}}
        for i, name in enumerate(names)
    ]
    return {"role": "assistant", "content": "", "tool_calls": calls}
