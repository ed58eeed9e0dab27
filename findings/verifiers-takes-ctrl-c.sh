#!/usr/bin/env bash
# An environment of verifiers takes Ctrl-C and SIGTERM of its process for itself, and pays 0 where its reward function raises.
#
# `Environment.__post_init__` (verifiers 0.3.1; 0.1.10 too) sets handlers of SIGINT and SIGTERM without calling those that were there:
# what a program does before it is preempted is lost with the first environment that it makes. `Rubric` logs an exception of a
# reward function and takes 0 for its reward, so that a broken function looks like a policy that is always wrong. Guessed: a
# library leaves signals alone, and a function that raises is an error.
#
# Seen with Python 3.11:
#   the handler of SIGTERM is still ours: False
#   the reward function raised, the rollout paid: 0.0 error: None
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-compile verifiers==0.3.1

cat >"$folder/look.py" <<'PYTHON'
import asyncio
import signal

import verifiers
from datasets import Dataset
from verifiers.types import ClientConfig, Response


def save_and_end(*_):
    """What a job does that is told to go."""


def score(completion, answer):
    return float(completion["no such key"] == answer)


async def say_five(*_, **__):
    message = {"content": "5", "finish_reason": "stop", "is_truncated": False}
    return Response.model_validate({"id": "", "created": 0, "model": "none", "message": message})


signal.signal(signal.SIGTERM, save_and_end)
rows = Dataset.from_list([{"question": "2 + 3?", "answer": "5"}])
environment = verifiers.SingleTurnEnv(dataset=rows, rubric=verifiers.Rubric(funcs=[score]))
print("the handler of SIGTERM is still ours:", signal.getsignal(signal.SIGTERM) is save_and_end)
environment.get_model_response = say_five  # instead of a server
paid = asyncio.run(environment.run_rollout(environment.get_dataset()[0], ClientConfig(), "none", {}))
print("the reward function raised, the rollout paid:", paid["reward"], "error:", paid.get("error"))
PYTHON
seen=$(cd "$folder" && "$folder/venv/bin/python" look.py 2>/dev/null)
echo "$seen"
expected="the handler of SIGTERM is still ours: False
the reward function raised, the rollout paid: 0.0 error: None"
[[ $seen == "$expected" ]] || {
    echo "this has changed" >&2
    exit 1
}
