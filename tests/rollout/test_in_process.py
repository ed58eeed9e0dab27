"""What the engine of the trainer's own parts reads."""

from dataclasses import replace
from pathlib import Path

import torch
from helpers.engines import SAMPLING, prompts

from grpo_pl.rollout.engine import requests_of
from grpo_pl.rollout.in_process import InProcessEngine


def test_a_prompt_is_read_once_and_a_sequence_that_has_ended_no_more(tiny_model: Path) -> None:
    engine = InProcessEngine(str(tiny_model))
    engine.start(max_sequence_tokens=96, max_sequences=16, device=torch.device("cpu"))
    read: list[int] = []
    requests = requests_of(prompts(tiny_model), 2, SAMPLING)
    for n, request in enumerate(requests, start=1):
        engine.submit(replace(request, sampling=replace(SAMPLING, max_tokens=n)))
    assert engine._model is not None
    engine._model.register_forward_pre_hook(
        lambda _, __, named: read.append(len(named["input_ids"])), with_kwargs=True
    )
    lengths = [len(response.token_ids) for _, response in engine.step()]
    assert read == [3, *(sum(length > t for length in lengths) for t in range(1, max(lengths)))]
    assert read[0] > read[-1]
