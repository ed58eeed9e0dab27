"""Splits that a model does not allow are refused by the name of the argument, with its key."""

from pathlib import Path

import pytest
from torch.distributed.device_mesh import DeviceMesh

from grpo_pl.models import CausalLM
from grpo_pl.models.loading import untrained_language_model
from grpo_pl.models.tensor_parallel import check_heads, linear_plan
from grpo_pl.system.refusal import KEY, ArgumentError
from grpo_pl.training.strategies import FSDP2Strategy


class ThreeRanks(DeviceMesh):
    """A mesh of ranks that do not exist."""

    def __init__(self) -> None:
        pass

    def size(self, mesh_dim: int | None = None) -> int:  # noqa: ARG002 - as in torch
        return 3


def test_heads_that_a_split_would_cut_are_refused(tiny_model: Path) -> None:
    model = untrained_language_model(str(tiny_model))
    with pytest.raises(ArgumentError, match=r"^tensor_parallel_size=3 does not divide the model's 1 heads"):
        check_heads(model, 3)


def test_an_architecture_without_a_plan_is_refused(tiny_model: Path) -> None:
    model = untrained_language_model(str(tiny_model))
    model.config.base_model_tp_plan = {"layers.*.self_attn": "another"}
    with pytest.raises(ArgumentError, match=r"^tensor_parallel_size: transformers has no plan"):
        linear_plan(model)


@pytest.mark.parametrize(("key", "named"), [("trainer.strategy", "trainer.strategy."), ("", "")])
def test_a_strategy_of_a_config_names_its_key(
    key: str, named: str, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strategy = FSDP2Strategy(tensor_parallel_size=3)
    if key:
        setattr(strategy, KEY, key)
    monkeypatch.setattr(FSDP2Strategy, "device_mesh", {"tensor_parallel": ThreeRanks()})
    with pytest.raises(ArgumentError, match=rf"^{named}tensor_parallel_size=3 does not divide"):
        strategy.place(CausalLM(str(tiny_model)).build)
