"""The same run on one rank and on several, however its models are divided among them."""

import json
import shutil
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from helpers.commands import Fit, Refused
from helpers.repository import ROOT
from helpers.run_results import NO_VALIDATION, callback, column, rows, strategy, untimed
from lightning.pytorch.strategies import FSDPStrategy

from grpo_pl.__main__ import main
from grpo_pl.commands.export import export
from grpo_pl.commands.tiny_model import make_tiny_model
from grpo_pl.models import CausalLM, ValueHead
from grpo_pl.models.deferred import deferred_weights
from grpo_pl.runs.checkpoint_io import AtomicCheckpointIO, read_shards
from grpo_pl.runs.manifest import Manifest, damage, is_sharded, whole_checkpoint
from grpo_pl.training.strategies import place

STRATEGIES = ROOT / "configs" / "strategy"
MEASURED = ("--gradient_terms.every", "2")
CRITIC = ("--model.critic", "ValueHead", "--model.advantage", "GAE")
SEVERAL_UPDATES = ("--data.minibatches", "1", "--data.update_epochs", "2")
FIVE = (*SEVERAL_UPDATES, "--trainer.max_epochs", "5")
VLLM = (
    *("--data.engine", "VLLMEngine", "--data.engine.dtype", "float32", "--data.engine.kv_cache_gib", "0.1"),
)
FSDP1_ON_A_CPU = ("--trainer.strategy.class_path", "helpers.cpu_fsdp.CPUFSDPStrategy")
UNSAVED = ("--checkpoint.every_n_epochs", "100", "--checkpoint.save_last", "false")


def assert_equal_runs(one: Path, other: Path, tolerance: float = 1e-4) -> None:
    """Every metric of every iteration but what says how long it took."""
    for here, there in zip(untimed(one), untimed(other), strict=True):
        assert here == pytest.approx(there, abs=tolerance, rel=tolerance)


HYBRID = ("--trainer.strategy.class_path", "FSDP2Strategy", "--trainer.strategy.replicas", "2")
OFFLOAD = (*strategy("offload"), "--trainer.strategy.process_group_backend", "gloo")


@pytest.fixture(scope="module")
def four_models(outcome_model: Path) -> tuple[str, ...]:
    """Five iterations with policy, reference, critic and reward model."""
    liked = "--model.rewards.liked"
    reward = (liked, "OutcomeRewardModel", f"{liked}.pretrained", str(outcome_model))
    return (*FIVE, *CRITIC, *MEASURED, *reward, f"{liked}.batch_tokens", "128")


@pytest.fixture(scope="module")
def alone(fit: Fit, four_models: tuple[str, ...]) -> Path:
    """The run in a single process."""
    return fit(*four_models, "--trainer.accumulate_grad_batches", "4")


@pytest.fixture(scope="module")
def in_shards(fit: Fit, four_models: tuple[str, ...]) -> Path:
    """The run with each model divided among two ranks, and all of its checkpoints."""
    cut = ("--trainer.accumulate_grad_batches", "2", "--checkpoint.save_top_k", "-1")
    return fit(*four_models, *strategy("fsdp2"), *cut, ranks=2)


def test_whole_models_learn_on_two_ranks_what_they_learn_on_one(
    alone: Path, fit: Fit, four_models: tuple[str, ...]
) -> None:
    cut = ("--trainer.accumulate_grad_batches", "2")
    assert_equal_runs(alone, fit(*four_models, *strategy("ddp"), *cut, ranks=2))


def test_models_in_shards_learn_what_whole_ones_do(alone: Path, in_shards: Path) -> None:
    assert_equal_runs(alone, in_shards)
    assert len(column(in_shards, "gradient/kl_cosine")) == 2, "iterations 2 and 4 were measured"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("count", "how"),
    [
        (4, strategy("ddp")),
        (4, strategy("fsdp2")),
        (4, HYBRID),
        (2, OFFLOAD),
    ],
    ids=["ddp on 4", "fsdp2 on 4", "hsdp", "offload"],
)
def test_several_ranks_learn_what_one_does(
    alone: Path, fit: Fit, four_models: tuple[str, ...], count: int, how: tuple[str, ...]
) -> None:
    cut = ("--trainer.accumulate_grad_batches", 4 // count)
    assert_equal_runs(alone, fit(*four_models, *how, *cut, ranks=count))


@pytest.mark.slow
def test_flat_shards_learn_what_whole_models_do(fit: Fit, four_models: tuple[str, ...]) -> None:
    unmeasured = (*four_models, "--gradient_terms.every", "null", "--trainer.accumulate_grad_batches")
    assert_equal_runs(fit(*unmeasured, "4"), fit(*unmeasured, "2", *FSDP1_ON_A_CPU, *UNSAVED, ranks=2))


@pytest.mark.slow
def test_ranks_that_share_layers_learn_what_one_does(fit: Fit, tmp_path: Path) -> None:
    """Tensor parallelism over two ranks and FSDP2 over two pairs of them."""
    model = make_tiny_model(tmp_path / "tiny", key_value_heads=2)
    two = (*SEVERAL_UPDATES, *CRITIC, *MEASURED, "--trainer.max_epochs", "2")
    one = fit(*two, pretrained=model)
    four = fit(*two, *strategy("fsdp2_tp"), "--trainer.accumulate_grad_batches", 1, pretrained=model, ranks=4)
    assert_equal_runs(one, four)


@pytest.mark.vllm
@pytest.mark.parametrize("how", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp2"])
def test_an_engine_on_each_rank_samples_what_one_engine_does(fit: Fit, how: str) -> None:
    lr = ("--model.optimizer.lr", "0.01")
    two = (*SEVERAL_UPDATES, "--trainer.max_epochs", "2", *VLLM, *lr, *NO_VALIDATION)
    assert_equal_runs(fit(*two), shared := fit(*two, *strategy(how), ranks=2))
    assert max(column(shared, "sync/logprob_mismatch")) < 1e-5


@pytest.mark.slow
@pytest.mark.vllm
def test_ranks_whose_engine_is_one_sample_what_one_does(fit: Fit, tmp_path: Path) -> None:
    """Each of two ranks has half of every layer of the engine, and prompts of its own."""
    model = make_tiny_model(tmp_path / "tiny", key_value_heads=2)
    two = (*SEVERAL_UPDATES, "--trainer.max_epochs", "2", *VLLM, *NO_VALIDATION)
    spanning = (*strategy("ddp"), "--data.engine.tensor_parallel_size", 2)
    one = fit(*two, "--trainer.accumulate_grad_batches", 4, pretrained=model)
    assert_equal_runs(one, fit(*two, *spanning, pretrained=model, ranks=2))


@pytest.mark.slow
def test_a_moving_reference_moves_the_same_in_shards(fit: Fit) -> None:
    two = (
        *(*SEVERAL_UPDATES, "--trainer.max_epochs", "3", *NO_VALIDATION, "--model.reference_update", "EMA"),
        *("--model.reference_update.decay", "0.5"),
    )
    assert_equal_runs(fit(*two), fit(*two, *strategy("fsdp2"), ranks=2))


@pytest.mark.slow
def test_a_sync_holds_no_second_copy_of_the_model(fit: Fit, smollm: Path) -> None:
    """Of 0.25 GiB in bfloat16, the largest parameter is 0.05 GiB; it is gathered from parts of its size."""
    probe = (*callback("helpers.rank_probes.SyncMemory"), "--trainer.max_epochs", 1, *NO_VALIDATION)
    folder = fit(
        *strategy("fsdp2"), *probe, "--model.kl", "null", "--data.val", "null", pretrained=smollm, ranks=2
    )
    for rank in range(2):
        measured = json.loads((folder / f"sync-{rank}.json").read_text())
        assert measured["sent"] == pytest.approx(0.25, abs=0.01)
        assert measured["extra"] < 0.2


def weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = AtomicCheckpointIO().load_checkpoint(folder / "checkpoints/last.ckpt", weights_only=True)
    return dict(checkpoint["state_dict"])


def same_weights(one: Path, other: Path, tolerance: float) -> None:
    ours, theirs = weights(one), weights(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert torch.allclose(theirs[name], tensor, rtol=0, atol=tolerance), name


def test_a_sharded_run_goes_on_in_one_process(
    fit: Fit, in_shards: Path, four_models: tuple[str, ...]
) -> None:
    fourth = in_shards / "checkpoints" / "iteration-0004.ckpt"
    assert is_sharded(fourth)
    on = fit(*four_models, "--trainer.accumulate_grad_batches", "4", "--ckpt_path", fourth)
    same_weights(in_shards, on, 1e-5)


def test_a_torn_shard_makes_the_checkpoint_before_the_last_one(in_shards: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(in_shards / "checkpoints", tmp_path / "checkpoints", symlinks=True)
    last = folder / "last.ckpt"
    shard = next(last.resolve().glob("*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert damage(last.resolve(), Manifest.read(last)).startswith(f"{shard.name} has ")
    assert whole_checkpoint(last) == folder / "iteration-0004.ckpt"


@pytest.mark.slow
@pytest.mark.parametrize(("count", "tolerance"), [(2, 0.0), (4, 1e-5)])
def test_a_sharded_run_goes_on_with_any_number_of_ranks(
    fit: Fit, in_shards: Path, four_models: tuple[str, ...], count: int, tolerance: float
) -> None:
    fourth = ("--ckpt_path", in_shards / "checkpoints" / "iteration-0004.ckpt")
    cut = ("--trainer.accumulate_grad_batches", 4 // count)
    same_weights(in_shards, fit(*four_models, *strategy("fsdp2"), *cut, *fourth, ranks=count), tolerance)


def test_a_sharded_checkpoint_is_validated_in_one_process(
    in_shards: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = ("--trainer.strategy", "auto", "--trainer.devices", "1")
    last = ("--ckpt_path", str(in_shards / "checkpoints" / "last.ckpt"))
    main(["validate", "--config", str(in_shards / "config.yaml"), *whole, *last])
    printed = capsys.readouterr().out
    assert "val/response_tokens" in printed
    assert f"{rows(in_shards)[-1]['val/response_tokens']:.6g}"[:8] in printed


def test_a_sharded_checkpoint_is_exported_in_full(in_shards: Path, tmp_path: Path, tiny_model: Path) -> None:
    last = in_shards / "checkpoints" / "last.ckpt"
    exported = export(last, tmp_path / "exported", str(tiny_model))
    whole = weights(in_shards)
    for name, tensor in CausalLM(str(exported)).build().language_model.named_parameters():
        assert torch.equal(tensor, whole[f"policy.language_model.{name}"]), name


@pytest.mark.slow
def test_a_run_on_one_rank_goes_on_in_shards(fit: Fit) -> None:
    one = (*SEVERAL_UPDATES, "--trainer.accumulate_grad_batches", 4, *NO_VALIDATION)
    whole, begun = fit(*one, "--trainer.max_epochs", 3), fit(*one, "--trainer.max_epochs", 2)
    on = (*SEVERAL_UPDATES, "--ckpt_path", begun / "checkpoints" / "last.ckpt", "--trainer.max_epochs", 3)
    two = fit(*on, *strategy("fsdp2"), *NO_VALIDATION, ranks=2)
    same_weights(whole, two, 1e-5)


def test_shards_read_in_part_are_those_of_the_whole(in_shards: Path) -> None:
    last = in_shards / "checkpoints" / "last.ckpt"
    critic = read_shards(last, "state_dict.critic.")["state_dict"]
    assert critic
    assert all(name.startswith("critic.") for name in critic)
    whole = weights(in_shards)
    assert all(torch.equal(tensor, whole[name]) for name, tensor in critic.items())


@pytest.mark.parametrize("builder", [CausalLM, ValueHead])
@pytest.mark.parametrize("model", ["tiny_model", "tiny_untied_model"])
def test_weights_that_are_read_last_are_the_same(
    builder: type[CausalLM | ValueHead], model: str, request: pytest.FixtureRequest
) -> None:
    pretrained = str(request.getfixturevalue(model))
    with deferred_weights() as owed:
        late = builder(pretrained).build()
    assert all(p.is_meta for name, p in late.named_parameters() if not name.startswith("head."))
    owed.load(late, torch.device("cpu"))
    early = builder(pretrained).build()
    assert late.state_dict().keys() == early.state_dict().keys()
    for name, tensor in [*early.named_parameters(), *early.named_buffers()]:
        assert torch.equal(
            tensor, late.get_parameter(name) if "inv_freq" not in name else late.get_buffer(name)
        )


def test_ranks_that_cannot_be_shared_out_are_refused(fit: Fit, refused: Refused) -> None:
    said = refused(fit, "--trainer.strategy.class_path", "FSDP2Strategy", "--trainer.strategy.replicas", "2")
    assert "1 ranks" in said
    assert "replicas" in said


def test_fewer_than_one_replica_is_refused(fit: Fit, refused: Refused) -> None:
    said = refused(fit, "--trainer.strategy.class_path", "FSDP2Strategy", "--trainer.strategy.replicas", "0")
    assert "replicas=0" in said


def test_lightnings_own_strategy_is_refused_with_ours() -> None:
    with pytest.raises(ValueError, match="set it to FSDP2Strategy"):
        place(pl.strategies.ModelParallelStrategy(), CausalLM("nowhere").build)


def test_fsdp1_with_copies_is_refused() -> None:
    hybrid = FSDPStrategy(sharding_strategy="HYBRID_SHARD", device_mesh=(2, 2))
    with pytest.raises(ValueError, match="sharding_strategy=HYBRID_SHARD keeps copies"):
        place(hybrid, CausalLM("nowhere").build)


def test_fewer_validation_prompts_than_ranks_are_refused(
    fit: Fit,
) -> None:
    with pytest.raises(AssertionError, match=r"data\.val has 1 prompts for 2 ranks: give it at least 2"):
        fit(*strategy("ddp"), "--data.val.held_out", 1, ranks=2)
