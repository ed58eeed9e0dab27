"""A reward that asks a language model behind an HTTP endpoint."""

import http.client
import json
import logging
import os
import re
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, final
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from typing_extensions import override

from grpo_pl.models.builder import Place
from grpo_pl.models.conversation import as_text
from grpo_pl.rewards.base import RewardError, RewardFunction, advice, describe
from grpo_pl.rewards.patterns import compiled
from grpo_pl.system.addresses import is_address
from grpo_pl.system.refusal import ArgumentError, ConfigError, check_at_least
from grpo_pl.types import Prompt, Sample

log = logging.getLogger(__name__)

TEMPLATE = """\
Grade a response to a question. The reference answer is right.

Question: {question}

Reference answer: {answer}

Response: {response}

Think briefly, then end with a line `Score: x`, where x is a number from 0 (wrong) to 1 (right and clear)."""

_FIELDS = re.compile(r"\{(question|answer|response)\}")
_FIRST_WAIT_S = 0.25


class JudgeError(RuntimeError):
    """The judge gave no number."""


@final
class Judge(RewardFunction):
    r"""The number that a language model gives a response, asked over the OpenAI protocol at temperature 0.

    LLM-as-a-judge, single-answer grading with a reference (Zheng et al. 2023, arXiv 2306.05685, section 3.1).
    A response can contain text that is meant for the judge; the template must bound what that gains. A sample
    without a number stops the run or stays unscored, as `on_error` says; `abstain` suits long runs.

    Args:
        url: Address of the server up to its version, such as `http://localhost:8000/v1`.
        model: Name of the judge on that server.
        template: The judge's prompt; `{question}`, `{answer}` and `{response}` are filled in, other braces
            are literal. The question is the data's: of a conversation each message behind its role. The
            response begins with what the policy's prompt had opened for it, such as `<think>`.
        pattern: Regular expression of the number in the reply: its group if it has one, else the match; the
            last match counts.
        api_key_variable: Environment variable that holds the API key; null sends none.
        timeout_s: The longest wait for one reply, in seconds.
        retries: Further attempts at a request that was lost or found the server busy.
        concurrency: Simultaneous requests.
    """

    def __init__(
        self,
        url: str,
        model: str,
        template: str = TEMPLATE,
        pattern: str = r"Score:\s*(-?[0-9]+(?:\.[0-9]+)?)",
        api_key_variable: str | None = None,
        timeout_s: float = 60.0,
        retries: int = 3,
        concurrency: int = 16,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not is_address(url):
            raise ArgumentError(f"url={url}: expected one such as http://localhost:8000/v1, without ?")
        if "{response}" not in template:
            raise ArgumentError(f"template={template!r}: expected {{response}} in it")
        check_at_least(0, retries=retries)
        check_at_least(1, concurrency=concurrency)
        if not timeout_s > 0:
            raise ArgumentError(f"timeout_s={timeout_s}: expected more than 0 seconds")
        self.url, self.model, self.template = f"{url.rstrip('/')}/chat/completions", model, template
        self._number = compiled("pattern", pattern)
        if self._number.groups > 1:
            raise ArgumentError(f"pattern={pattern!r} has {self._number.groups} groups: expected one or none")
        self.api_key_variable, self.timeout_s = api_key_variable, timeout_s
        self.retries, self.concurrency = retries, concurrency

    @override
    def build(self, place: Place) -> None:
        """Ask once, so that a missing API key or an unreachable judge is refused before training."""
        if self.api_key_variable and not os.environ.get(self.api_key_variable):
            raise ArgumentError(
                f"api_key_variable={self.api_key_variable} is not set: export it, or set it to null",
                self,
            )
        prompt = Prompt(token_ids=[], text="What is 1 + 1?", answer="2")
        try:
            self._ask(Sample(prompt=prompt, response="2", response_tokens=1, truncated=False))
        except JudgeError as error:
            raise ConfigError(
                f"{error}: start the server, or check url, model and api_key_variable", self
            ) from error

    @override
    def score(self, samples: Sequence[Sample]) -> list[float | None]:
        with ThreadPoolExecutor(self.concurrency) as pool:
            scores = list(pool.map(self._grade, samples))
        failed = [(sample, s) for sample, s in zip(samples, scores, strict=True) if isinstance(s, JudgeError)]
        if failed:
            sample, error = failed[0]
            message = f"{error} ({describe(sample)})"
            if self.on_error == "raise":
                kinds = [type(error).__name__ for _, error in failed]
                raise RewardError(f"{message}; {advice(kinds, len(samples))}") from error
            log.warning("%d of %d samples have no score: %s", len(failed), len(samples), message)
        return [None if isinstance(score, JudgeError) else score for score in scores]

    def _grade(self, sample: Sample) -> float | JudgeError:
        """The last number of the judge's reply."""
        try:
            reply = self._ask(sample)
        except JudgeError as error:
            return error
        try:
            return float(self._number.findall(reply)[-1])
        except (IndexError, ValueError):
            return JudgeError(f"the judge's reply has no number: {reply[-200:]!r}")

    def _ask(self, sample: Sample) -> str:
        """The judge's reply."""
        prompt = sample.prompt
        texts = {
            "question": as_text(prompt.messages) or prompt.text,
            "answer": prompt.answer,
            "response": prompt.opened + sample.response,
        }
        question = _FIELDS.sub(lambda field: texts[field[1]], self.template)  # once: texts may hold braces
        body = {"model": self.model, "temperature": 0, "messages": [{"role": "user", "content": question}]}
        reply = self._post(json.dumps(body).encode())
        try:
            content = json.loads(reply)["choices"][0]["message"]["content"]
        except (ValueError, LookupError, TypeError):
            content = None
        if not isinstance(content, str):
            raise JudgeError(f"the judge at {self.url} sent no chat completion: {reply[:200]!r}")
        return content

    def _post(self, body: bytes) -> bytes:
        """The server's answer; waits between attempts, twice as long each time."""
        request = Request(self.url, body, {"Content-Type": "application/json"})
        if self.api_key_variable:  # unredirected: no other host may see the key
            request.add_unredirected_header("Authorization", f"Bearer {os.environ[self.api_key_variable]}")
        for wait_s in [*(_FIRST_WAIT_S * 2**i for i in range(self.retries)), None]:
            try:
                with urlopen(request, timeout=self.timeout_s) as reply:
                    answer: bytes = reply.read()
                    return answer
            except HTTPError as error:
                reason = f"status {error.code}: {error.read(200).decode(errors='replace')!r}"
                final_answer = error.code < 500 and error.code != http.HTTPStatus.TOO_MANY_REQUESTS
            except (OSError, http.client.HTTPException) as error:
                reason, final_answer = str(error) or type(error).__name__, False
            if final_answer or wait_s is None:
                break
            time.sleep(wait_s)
        raise JudgeError(f"the judge at {self.url} does not answer ({reason})")
