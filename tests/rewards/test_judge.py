"""The judge against a real server on this machine that speaks the protocol."""

import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from helpers.commands import Fit, Refused
from torch import nn

from grpo_pl.models.builder import Build
from grpo_pl.rewards.base import RewardError, score_samples
from grpo_pl.rewards.judge import Judge
from grpo_pl.runs.layout import read_metrics
from grpo_pl.types import Prompt, Sample


def whole(build: Build) -> nn.Module:
    return build()


Reply = str | int | bytes


class Server(ThreadingHTTPServer):
    """Answers chat completions with `answer(question)`: a text, a status, or a raw body."""

    daemon_threads = True
    request_queue_size = 64  # with the 5 of socketserver a busy machine turns connections away

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer: Callable[[str], Reply] = lambda _: "Score: 1"
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.at_once = self.most_at_once = 0
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.lock:
            self.server.requests.append(body)
            self.server.headers.append(dict(self.headers))
            self.server.at_once += 1
            self.server.most_at_once = max(self.server.most_at_once, self.server.at_once)
        reply = self.server.answer(body["messages"][0]["content"])
        with self.server.lock:
            self.server.at_once -= 1
        found = self.path == "/v1/chat/completions" and not isinstance(reply, int)
        self.send_response(200 if found else reply if isinstance(reply, int) else 404)
        self.end_headers()
        if isinstance(reply, str):
            message = {"role": "assistant", "content": reply}
            reply = json.dumps({"choices": [{"index": 0, "message": message}]}).encode()
        self.wfile.write(reply if isinstance(reply, bytes) else b'{"error": "no such luck"}')


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def sample(response: str) -> Sample:
    prompt = Prompt(token_ids=[1], text="What is 2 + 3?", answer="5")
    return Sample(prompt=prompt, response=response, response_tokens=3, truncated=False)


def judge(server: Server, **settings: Any) -> Judge:
    return Judge(**({"url": server.url, "model": "wise", "template": "{response}"} | settings))


def test_scores_are_the_numbers_of_the_replies_in_order(server: Server) -> None:
    server.answer = lambda question: f"Score: 0 at first. Score: {question}"
    scores = judge(server, concurrency=4).score([sample(str(i / 8)) for i in range(20)])
    assert scores == [i / 8 for i in range(20)]


def test_the_request_is_a_chat_completion_at_temperature_0(server: Server) -> None:
    judge(server, template="{question}|{answer}|{response}|{other}").score([sample("it is {answer}")])
    assert server.requests == [
        {
            "model": "wise",
            "temperature": 0,
            "messages": [{"role": "user", "content": "What is 2 + 3?|5|it is {answer}|{other}"}],
        }
    ]


def test_the_judge_reads_the_whole_conversation_and_the_thought_that_the_prompt_has_opened(
    server: Server,
) -> None:
    turns = [
        {"role": "system", "content": "Add."},
        {"role": "user", "content": "1+{answer}"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "2+3"},
    ]
    prompt = Prompt(token_ids=[1], text="2+3", answer="5", messages=turns, opened="<think>\n")
    shown = Sample(prompt=prompt, response="sum</think>5", response_tokens=3, truncated=False)
    judge(server, template="{question}|{response}").score([shown])
    prompt.messages = turns[-1:]
    judge(server, template="{question}|{response}").score([shown])
    whole, single = (request["messages"][0]["content"] for request in server.requests)
    conversation = "System: Add.\n\nUser: 1+{answer}\n\nAssistant: 2\n\nUser: 2+3"
    assert whole == f"{conversation}|<think>\nsum</think>5"
    assert single == "2+3|<think>\nsum</think>5"


def test_the_default_template_asks_for_what_the_default_pattern_reads(server: Server) -> None:
    server.answer = lambda _: "It is right.\nScore: 0.75"
    judge = Judge(server.url, "wise")
    assert judge.score([sample("five")]) == [0.75]
    asked = server.requests[0]["messages"][0]["content"]
    for part in ("What is 2 + 3?", "answer: 5", "Response: five", "Score: x"):
        assert part in asked


@pytest.mark.parametrize(
    ("pattern", "reply", "number"),
    [
        (r"[0-9]+", "7 of 10", 10.0),
        (r"\[\[(-?[0-9]+)\]\]", "I say [[-3]], not 5", -3.0),
        ("x=(.*)", "x=2e-1", 0.2),
    ],
)
def test_patterns_by_hand(server: Server, pattern: str, reply: str, number: float) -> None:
    server.answer = lambda _: reply
    assert judge(server, pattern=pattern).score([sample("")]) == [number]


def test_requests_run_at_once_up_to_the_limit(server: Server) -> None:
    def slow(_: str) -> str:
        time.sleep(0.05)
        return "Score: 1"

    server.answer = slow
    judge(server, concurrency=3).score([sample("")] * 12)
    assert server.most_at_once == 3


@pytest.mark.parametrize("reply", ["no idea", "Score: high"])
def test_a_reply_without_a_number_raises_and_shows_the_sample(server: Server, reply: str) -> None:
    server.answer = lambda question: reply if question == "bad" else "Score: 1"
    samples = [sample("good")] * 5 + [sample("bad")]
    with pytest.raises(RewardError) as info:
        score_samples({"opinion": judge(server)}, samples)
    assert str(info.value) == (
        f"Reward 'opinion' failed: the judge's reply has no number: '{reply}' (prompt 'What is 2 + 3?', "
        "answer '5', response 'bad'); on_error: abstain would skip such samples."
    )
    assert len(server.requests) == 6, "nobody is asked twice to find the culprit"


def test_a_reply_without_a_number_can_leave_the_sample_unscored(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    server.answer = lambda question: "Score: 1" if question == "good" else "hm"
    with caplog.at_level(logging.WARNING):
        scored = score_samples(
            {"opinion": judge(server, on_error="abstain")}, [sample("good"), sample("bad"), sample("worse")]
        )
    assert scored.by_name == {"opinion": [1.0, None, None]}
    assert [record.message[:33] for record in caplog.records] == ["2 of 3 samples have no score: the"]
    assert "'bad'" in caplog.text


@pytest.mark.parametrize(
    "reply", [b"<html>", b"{}", b"[]", b'{"choices": []}', b'{"choices": [{"message": null}]}']
)
def test_what_is_no_chat_completion_is_said_so(server: Server, reply: bytes) -> None:
    server.answer = lambda _: reply
    with pytest.raises(RewardError, match="sent no chat completion"):
        judge(server).score([sample("")])


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(server: Server, status: int) -> None:
    replies: list[Reply] = [status, status, "Score: 0.5"]
    server.answer = lambda _: replies.pop(0)
    assert judge(server, retries=2).score([sample("")]) == [0.5]


def test_a_server_that_stays_busy_is_given_up(server: Server) -> None:
    server.answer = lambda _: 503
    with pytest.raises(RewardError, match=r"does not answer \(status 503: .*no such luck"):
        judge(server, retries=1).score([sample("")])
    assert len(server.requests) == 2


def test_a_refusal_is_not_repeated(server: Server) -> None:
    server.answer = lambda _: 401
    with pytest.raises(RewardError, match="status 401"):
        judge(server).score([sample("")])
    assert len(server.requests) == 1


def test_a_reply_that_takes_too_long_is_not_waited_for(server: Server) -> None:
    hold = threading.Event()
    server.answer = lambda _: "Score: 1" if hold.wait() else "late"
    try:
        with pytest.raises(RewardError, match="timed out"):
            judge(server, timeout_s=0.2, retries=0).score([sample("")])
    finally:
        hold.set()


def test_the_key_comes_from_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    ours = judge(server, api_key_variable="JUDGE_KEY")
    monkeypatch.delenv("JUDGE_KEY", raising=False)
    with pytest.raises(ValueError, match=r"^api_key_variable=JUDGE_KEY is not set: export it"):
        ours.build(whole)
    monkeypatch.setenv("JUDGE_KEY", "secret")
    ours.build(whole)
    assert server.headers[0]["Authorization"] == "Bearer secret"
    judge(server).score([sample("")])
    assert "Authorization" not in server.headers[1]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"url": "localhost:8000"},
            "url=localhost:8000: expected one such as http://localhost:8000/v1",
        ),
        ({"template": "{answer}"}, "template='{answer}': expected {response} in it"),
        ({"pattern": "("}, "pattern='(': expected a regular expression"),
        ({"pattern": "(a)(b)"}, "pattern='(a)(b)' has 2 groups: expected one or none"),
        ({"timeout_s": 0.0}, "timeout_s=0.0: expected more than 0 seconds"),
        ({"retries": -1}, "retries=-1: expected 0 or more"),
        ({"concurrency": 0}, "concurrency=0: expected 1 or more"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        Judge(**({"url": "http://localhost/v1", "model": "wise"} | settings))


# ---------------------------------------------------------------------------------------------- inside a run


def arguments(url: str) -> tuple[str, ...]:
    inside = {"url": url, "model": "wise", "template": "{response}", "on_error": "abstain", "retries": 0}
    reward = {"opinion": {"class_path": "Judge", "init_args": inside}}
    return (
        "--model.rewards",
        json.dumps(reward),
        "--trainer.max_epochs",
        "2",
        "--trainer.limit_val_batches",
        "0",
    )


def test_a_run_is_judged(server: Server, fit: Fit) -> None:
    server.answer = lambda question: f"Score: {len(question)}" if len(question) % 2 else "odd only"
    rows = read_metrics(fit(*arguments(server.url)) / "metrics.csv")[1:]
    assert len(server.requests) == 1 + 2 * 16, "one before training, then one for each response"
    assert all(row["rewards/opinion"] > 0 for row in rows)
    assert all(0 < row["rewards/opinion_abstained"] < 1 for row in rows)


def test_a_server_that_is_not_there_is_refused_before_training(
    server: Server, fit: Fit, refused: Refused
) -> None:
    nobody = server.url.replace(str(server.server_port), "9")
    assert re.fullmatch(
        rf"grpo_pl: error: model\.rewards\.opinion: the judge at {nobody}/chat/completions does not answer "
        r"\(.*refused.*\): "
        "start the server, or check url, model and api_key_variable",
        refused(fit, *arguments(nobody)),
    )
