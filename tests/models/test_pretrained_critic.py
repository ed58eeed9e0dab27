"""A critic learns from kept rollouts before the policy moves, and another run starts from it."""

import json
from pathlib import Path

import pytest
import torch
from helpers.commands import Fit, Refused, command
from helpers.run_results import NO_VALIDATION, rows, saved
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from grpo_pl.commands.tiny_model import make_tiny_model
from grpo_pl.models import ValueHead, ValueModel

PPO = ("--model.critic", "ValueHead", "--model.advantage", "GAE", "--samples.every", "0", *NO_VALIDATION)

ONE = ("--trainer.max_epochs", "1")


def replay(kept: Path) -> tuple[str, ...]:
    return "--data.engine", "ReplayEngine", "--data.engine.path", str(kept / "rollouts")


@pytest.fixture(scope="module")
def kept(fit: Fit) -> Path:
    """A rollout of the pretrained policy."""
    return fit(*PPO, *ONE, "--data.keep_rollouts", "true")


@pytest.fixture(scope="module")
def pretraining(fit: Fit, kept: Path) -> Path:
    """Twenty passes over it, in which the critic alone learns."""
    return fit(
        *(*PPO, *ONE, *replay(kept), "--model.critic_warmup", "1", "--model.critic_lr", "0.003"),
        *("--data.update_epochs", "20", "--model.value_loss.clip", "null"),
    )


@pytest.fixture(scope="module")
def folder(pretraining: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("critic") / "model"
    command("export", pretraining / "checkpoints" / "last.ckpt", out, "--model", "critic")
    return out


def batch() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(3, 300, (3, 10), generator=torch.Generator().manual_seed(0))
    return tokens, torch.arange(10).expand(3, 10) >= 4


def test_an_exported_critic_says_the_values_of_the_checkpoint_to_the_bit(
    pretraining: Path, folder: Path, tiny_model: Path
) -> None:
    trained = ValueHead(str(tiny_model)).build()
    state = saved(pretraining)["state_dict"]
    trained.load_state_dict(
        {k.removeprefix("critic."): w for k, w in state.items() if k.startswith("critic.")}
    )
    loaded = ValueHead(str(folder)).build()
    assert isinstance(loaded, ValueModel)
    assert loaded.head.bias.item() != 0
    with torch.no_grad():
        assert torch.equal(loaded(*batch()), trained(*batch()))


def test_it_is_a_reward_models_folder_but_for_the_bias(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    scorer = AutoModelForSequenceClassification.from_pretrained(folder)
    assert type(scorer).__name__ in config["architectures"]
    critic = ValueHead(str(folder)).build()
    tokens, mask = batch()
    with torch.no_grad():
        values, logits = critic(tokens, mask)[:, 9], scorer(tokens[:, :9]).logits[:, 0]
    assert torch.allclose(values, logits + config["value_bias"], atol=1e-5)


def test_the_first_iteration_of_a_run_that_starts_from_it_is_explained(
    fit: Fit, folder: Path, kept: Path
) -> None:
    """Of the same rollout: in 16 responses there is nothing to find that holds for others."""
    one = (*PPO, *ONE, *replay(kept))
    pretrained, from_zero = (fit(*one, *more) for more in (("--model.critic.pretrained", str(folder)), ()))
    assert rows(from_zero)[1]["train/explained_variance"] == 0
    assert rows(pretrained)[1]["train/explained_variance"] > 0.2
    assert rows(pretrained)[1]["train/value_loss"] < 0.8 * rows(from_zero)[1]["train/value_loss"]


def test_a_critic_without_a_trunk_of_its_own_and_a_run_without_a_critic_are_refused(
    fit: Fit, refused: Refused, kept: Path, tmp_path: Path
) -> None:
    on_trunk = fit(*PPO, *ONE, "--model.critic", "TrunkValueHead")
    last = on_trunk / "checkpoints" / "last.ckpt"
    words = ("--model", "critic", "--pretrained", kept)
    assert "has no trunk of its own" in refused(command, "export", last, tmp_path / "a", *words)
    without = fit(*ONE, *NO_VALIDATION) / "checkpoints" / "last.ckpt"
    assert "holds no critic" in refused(command, "export", without, tmp_path / "b", *words)
    assert not [*tmp_path.iterdir()]
    wider = make_tiny_model(tmp_path / "wider", vocab_size=384)
    words = ("--model", "critic", "--pretrained", wider)
    last = kept / "checkpoints" / "last.ckpt"
    assert "does not fit the base model" in refused(command, "export", last, tmp_path / "c", *words)


def test_a_checkpoint_of_several_critics_is_refused_as_such(
    refused: Refused, tiny_model: Path, tmp_path: Path
) -> None:
    several = {f"critic.critics.{n}.head.weight": torch.zeros(1, 4) for n in (0, 1)}
    torch.save({"state_dict": several}, tmp_path / "several.ckpt")
    words = (tmp_path / "several.ckpt", tmp_path / "out", "--model", "critic", "--pretrained", tiny_model)
    assert "several.ckpt holds several critics: export one of" in refused(command, "export", *words)
    assert not (tmp_path / "out").exists()
