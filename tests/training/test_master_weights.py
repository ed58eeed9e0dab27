"""Masters: small steps add up, the numbers are those of float32, and a state goes on to the bit."""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from grpo_pl.training.master_weights import MasterWeights, with_masters

FACTORIES: dict[str, Callable[[Any], Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, lr=1e-3, weight_decay=0.1),
    "fused": partial(torch.optim.AdamW, lr=1e-3, fused=True),
    "sgd": partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
    "adafactor": partial(torch.optim.Adafactor, lr=1e-3),
}


def parameters(dtype: torch.dtype) -> list[nn.Parameter]:
    draw = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=draw).bfloat16().to(dtype)) for shape in ((4, 8), (8,))]


def gradients(step: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(step)
    return [torch.randn(shape, generator=draw).bfloat16() for shape in ((4, 8), (8,))]


def steps(optimizer: Optimizer, trained: Iterable[nn.Parameter], numbers: Iterable[int]) -> None:
    for step in numbers:
        for parameter, gradient in zip(trained, gradients(step), strict=True):
            parameter.grad = gradient.to(parameter.dtype)
        optimizer.step()


def test_steps_that_bfloat16_would_round_away_add_up() -> None:
    weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimizer = with_masters(partial(torch.optim.SGD, lr=1e-4), [{"params": [weight]}])
    for _ in range(100):
        weight.grad = torch.ones_like(weight)
        optimizer.step()
    assert float(weight) == pytest.approx(0.99, abs=2**-8)
    assert weight.grad is None


@pytest.mark.parametrize("name", FACTORIES)
def test_masters_move_as_float32_weights_do_and_weights_are_their_roundings(name: str) -> None:
    ours, theirs = parameters(torch.bfloat16), parameters(torch.float32)
    optimizer = with_masters(FACTORIES[name], [{"params": ours}])
    plain = with_masters(FACTORIES[name], [{"params": theirs}])
    assert isinstance(optimizer, MasterWeights)
    assert not isinstance(plain, MasterWeights)
    steps(optimizer, ours, range(5))
    steps(plain, theirs, range(5))
    for parameter, exact in zip(ours, theirs, strict=True):
        assert torch.equal(optimizer.masters[parameter], exact)
        assert torch.equal(parameter, exact.bfloat16())


@pytest.mark.parametrize("name", FACTORIES)
def test_a_stored_state_goes_on_to_the_bit(name: str) -> None:
    one, other = parameters(torch.bfloat16), parameters(torch.bfloat16)
    whole, resumed = (with_masters(FACTORIES[name], [{"params": p}]) for p in (one, other))
    steps(whole, one, range(6))
    begun = parameters(torch.bfloat16)
    first = with_masters(FACTORIES[name], [{"params": begun}])
    steps(first, begun, range(3))
    stored = first.state_dict()
    assert all(state["master"].dtype == torch.float32 for state in stored["state"].values())
    resumed.load_state_dict(stored)
    steps(resumed, other, range(3, 6))
    for a, b in zip(one, other, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(whole.masters[a], resumed.masters[b])


def test_a_schedule_and_the_rate_of_a_group_reach_the_other_optimizer() -> None:
    one, other = parameters(torch.bfloat16)
    groups = [{"params": [one]}, {"params": [other], "lr": 0.5}]
    optimizer = with_masters(partial(torch.optim.SGD, lr=0.25), groups)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    before = [master.clone() for master in optimizer.masters.values()]
    for parameter in (one, other):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    schedule.step()
    for parameter in (one, other):
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    moved = [old - new for old, new in zip(before, optimizer.masters.values(), strict=True)]
    assert torch.allclose(moved[0], torch.tensor(0.25 + 0.125))
    assert torch.allclose(moved[1], torch.tensor(0.5 + 0.25))


def test_without_gradient_nothing_moves_and_float32_parameters_are_their_own_masters() -> None:
    low, high = nn.Parameter(torch.ones(2, dtype=torch.bfloat16)), nn.Parameter(torch.ones(2))
    optimizer = with_masters(FACTORIES["adamw"], [{"params": [low, high]}])
    assert isinstance(optimizer, MasterWeights)
    optimizer.step()
    assert torch.equal(low, torch.ones(2, dtype=torch.bfloat16))
    high.grad = torch.ones(2)
    optimizer.step()
    assert optimizer.masters[high] is high
    assert (high < 1).all()
    assert "master" not in optimizer.state[high]


def test_the_closure_runs_before_the_step() -> None:
    """As Lightning hands over a micro-batch's forward and backward."""
    weight = nn.Parameter(torch.ones(1, dtype=torch.bfloat16))
    optimizer = with_masters(partial(torch.optim.SGD, lr=0.5), [{"params": [weight]}])

    def closure() -> Tensor:
        loss = (weight * 2).sum()
        loss.backward()
        return loss

    assert float(optimizer.step(closure)) == 2
    assert float(weight) == 0
