"""A component names its own argument; the config layer puts the key before it, wherever it stands."""

import copy
import pickle

import pytest
import torch
from helpers.commands import OverARun, Refused
from jsonargparse import Namespace

from grpo_pl.config.places import Places
from grpo_pl.losses import ClippedSurrogate
from grpo_pl.rollout.vllm import VLLMEngine
from grpo_pl.system.refusal import ArgumentError

VLLM = "--data.val_engine VLLMEngine --data.val_engine.kv_cache_gib"
OVERLAPPED = (
    "--data.engine OverlappedEngine --data.engine.engine VLLMEngine --data.engine.engine.kv_cache_gib"
)
TWO_BOUNDS = (
    "{a: {class_path: LengthPenalty, init_args: {max_tokens: 3}}, "
    "b: {class_path: LengthPenalty, init_args: {max_tokens: 0}}}"
)
WORKERS = "{a: {class_path: MathAnswer, init_args: {workers: {processes: 0}}}}"
CONTROLLED = "--model.kl KLInReward --model.kl.controller.target"
PLACES = {
    "an engine for validation": (f"{VLLM}=-1", "data.val_engine.kv_cache_gib=-1.0: expected more than 0"),
    "an engine in an engine": (
        f"{OVERLAPPED}=-1",
        "data.engine.engine.kv_cache_gib=-1.0: expected more than 0",
    ),
    "the outer engine": (
        f"{OVERLAPPED}=1 --data.engine.threads=0",
        "data.engine.threads=0: expected 1 or more",
    ),
    "an argument that is an engine": (
        f"{OVERLAPPED}=1 --data.engine.engine.tensor_parallel_size 2",
        "data.engine.engine.tensor_parallel_size=2 needs the trainer's own processes",
    ),
    "the second reward of a class": (
        f"--model.rewards '{TWO_BOUNDS}'",
        "model.rewards.b.max_tokens=0: expected 1 or more",
    ),
    "the workers of a reward": (
        f"--model.rewards '{WORKERS}'",
        "model.rewards.a.workers.processes=0: expected 1 or more",
    ),
    "a mask in a list": (
        "--model.masks '[WithoutTruncated, {class_path: TopEntropy, init_args: {share: 2}}]'",
        "model.masks.1.share=2.0: expected",
    ),
    "a controller in the KL": (
        f"{CONTROLLED}=-1",
        "model.kl.controller.target=-1.0: expected a number above 0",
    ),
    "the KL": ("--model.kl.coefficient=-1", "model.kl.coefficient=-1.0: expected 0 or more"),
    "the sampling": ("--data.sampling.max_tokens 0", "data.sampling.max_tokens=0: expected 1 or more"),
    "an alarm": ("--alarms.no_signal.window 0", "alarms.no_signal.window=0: expected"),
    "a callback": ("--budget.seconds=-1", "budget.seconds=-1.0: expected more than 0, or null"),
    "the data module": ("--data.group_size 0", "data.group_size=0: expected 1 or more"),
    "the data module, when it reads": (
        "--data.max_prompt_tokens 0",
        "data.max_prompt_tokens=0: expected 1 or more",
    ),
    "the format": (
        "--data.format.question_template x",
        "data.format.question_template='x': expected {question} in it",
    ),
    "a prompt source": ("--data.val.digits 0", "data.val.digits=0: expected 1 to 18"),
    "a check between components": (
        "--model.critic_warmup=-1",
        "model.critic_lr=None and model.critic_warmup=-1 speak of a critic",
    ),
}


@pytest.mark.parametrize(("arguments", "sentence"), PLACES.values(), ids=PLACES)
def test_the_key_stands_before_the_argument(
    arguments: str, sentence: str, refused: Refused, over_a_run: OverARun
) -> None:
    assert f"error: {sentence}" in refused(over_a_run, arguments)


def test_in_python_the_argument_stands_alone() -> None:
    with pytest.raises(ArgumentError, match=r"^clip_low=-1.0: expected a number in \[0, 1\]$"):
        ClippedSurrogate(clip_low=-1.0)


def test_what_an_engine_refuses_at_its_start_has_the_key_also_in_another_process() -> None:
    settings = Namespace(pretrained="model", kv_cache_gib=1e9)
    engines = {
        key: Namespace(class_path="grpo_pl.rollout.vllm.VLLMEngine", init_args=copy.deepcopy(settings))
        for key in ("engine", "val_engine")
    }
    places = Places(Namespace(data=Namespace(**engines)))
    for key in engines:
        engine = places.build(VLLMEngine, **vars(settings))
        for each in (engine, pickle.loads(pickle.dumps(engine))):
            with pytest.raises(ArgumentError, match=rf"^data\.{key}\.kv_cache_gib=1e\+09 is more than the"):
                each.start(max_sequence_tokens=8, max_sequences=1, device=torch.device("cpu"))
