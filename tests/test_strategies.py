"""The same run on one rank and on several, however its models are divided among them."""

import json
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from conftest import load_tool
from lightning.pytorch.strategies import FSDPStrategy
from run_results import NO_VALIDATION, Fit, Ranks, Refused, column, strategy, untimed

from grpo_pl.callbacks.checkpoint_io import AtomicCheckpointIO, read_shards
from grpo_pl.manifest import is_sharded
from grpo_pl.models import CausalLM, ValueHead
from grpo_pl.models.deferred import deferred_weights
from grpo_pl.strategies import DataRanks, FSDP2Strategy, data_ranks, num_shards, place

ROOT = Path(__file__).resolve().parent.parent
STRATEGIES = ROOT / "configs" / "strategy"
CRITIC = ("--model.critic", "ValueHead", "--model.advantage", "GAE")
SEVERAL_UPDATES = ("--data.minibatches", "1", "--data.update_epochs", "2")
FIVE = (*SEVERAL_UPDATES, "--trainer.max_epochs", "5")
VLLM = (
    *("--data.engine", "VLLMEngine", "--data.engine.dtype", "float32", "--data.engine.kv_cache_gib", "0.1"),
)
FSDP1_ON_A_CPU = ("--trainer.strategy.class_path", "cpu_fsdp.CPUFSDPStrategy")
UNSAVED = ("--checkpoint.every_n_epochs", "100", "--checkpoint.save_last", "false")


def assert_equal_runs(one: Path, other: Path, tolerance: float = 1e-4) -> None:
    """Every metric of every iteration but what says how long it took."""
    for here, there in zip(untimed(one), untimed(other), strict=True):
        assert here == pytest.approx(there, abs=tolerance, rel=tolerance)


HYBRID = ("--trainer.strategy.class_path", "FSDP2Strategy", "--trainer.strategy.replicas", "2")
OFFLOAD = (*strategy("offload"), "--trainer.strategy.process_group_backend", "gloo")


@pytest.fixture(scope="module")
def alone(fit: Fit) -> Path:
    """Five iterations with critic in a single process."""
    return fit(*FIVE, *CRITIC, "--trainer.accumulate_grad_batches", "4")


@pytest.mark.parametrize(
    ("count", "how"),
    [
        (2, strategy("ddp")),
        (2, strategy("fsdp2")),
        pytest.param(4, strategy("ddp"), marks=pytest.mark.slow),
        pytest.param(4, strategy("fsdp2"), marks=pytest.mark.slow),
        pytest.param(4, HYBRID, marks=pytest.mark.slow),
        pytest.param(2, OFFLOAD, marks=pytest.mark.slow),
        pytest.param(2, (*FSDP1_ON_A_CPU, *UNSAVED), marks=pytest.mark.slow),
    ],
    ids=["ddp", "fsdp2", "ddp on 4", "fsdp2 on 4", "hsdp", "offload", "fsdp1"],
)
def test_several_ranks_learn_what_one_does(
    alone: Path, ranks: Ranks, count: int, how: tuple[str, ...]
) -> None:
    cuts = 4 // count
    assert_equal_runs(alone, ranks(count, *FIVE, *CRITIC, *how, "--trainer.accumulate_grad_batches", cuts))


@pytest.mark.slow
def test_ranks_that_share_layers_learn_what_one_does(fit: Fit, ranks: Ranks, tmp_path: Path) -> None:
    """Tensor parallelism over two ranks and FSDP2 over two pairs of them."""
    model = load_tool("make_tiny_model").make_tiny_model(tmp_path / "tiny", key_value_heads=2)
    two = (*SEVERAL_UPDATES, *CRITIC, "--trainer.max_epochs", "2")
    one = fit(*two, pretrained=model)
    four = ranks(4, *two, *strategy("fsdp2_tp"), "--trainer.accumulate_grad_batches", 1, pretrained=model)
    assert_equal_runs(one, four)


@pytest.mark.vllm
@pytest.mark.parametrize("how", [pytest.param("ddp", marks=pytest.mark.slow), "fsdp2"])
def test_an_engine_on_each_rank_samples_what_one_engine_does(fit: Fit, ranks: Ranks, how: str) -> None:
    lr = ("--model.optimizer.lr", "0.01")
    two = (*SEVERAL_UPDATES, "--trainer.max_epochs", "2", *VLLM, *lr, *NO_VALIDATION)
    assert_equal_runs(fit(*two), shared := ranks(2, *two, *strategy(how)))
    assert max(column(shared, "sync/logprob_mismatch")) < 1e-5


@pytest.mark.slow
@pytest.mark.vllm
def test_ranks_whose_engine_is_one_sample_what_one_does(fit: Fit, ranks: Ranks, tmp_path: Path) -> None:
    """Each of two ranks has half of every layer of the engine, and prompts of its own."""
    model = load_tool("make_tiny_model").make_tiny_model(tmp_path / "tiny", key_value_heads=2)
    two = (*SEVERAL_UPDATES, "--trainer.max_epochs", "2", *VLLM, *NO_VALIDATION)
    spanning = (*strategy("ddp"), "--data.engine.tensor_parallel_size", 2)
    one = fit(*two, "--trainer.accumulate_grad_batches", 4, pretrained=model)
    assert_equal_runs(one, ranks(2, *two, *spanning, pretrained=model))


def test_a_frozen_reward_model_is_divided_and_scores_the_same(
    fit: Fit, ranks: Ranks, outcome_model: Path
) -> None:
    reward = (
        *("--model.rewards", '{"liked": "OutcomeRewardModel"}', "--model.rewards.liked.pretrained"),
        *(str(outcome_model), "--model.rewards.liked.batch_tokens", "128"),
    )
    two = (*SEVERAL_UPDATES, *reward, "--trainer.max_epochs", "2", *NO_VALIDATION)
    assert_equal_runs(fit(*two), ranks(2, *two, *strategy("fsdp2")))


@pytest.mark.slow
def test_a_moving_reference_moves_the_same_in_shards(fit: Fit, ranks: Ranks) -> None:
    two = (
        *(*SEVERAL_UPDATES, "--trainer.max_epochs", "3", *NO_VALIDATION, "--model.reference_update", "EMA"),
        *("--model.reference_update.decay", "0.5"),
    )
    assert_equal_runs(fit(*two), ranks(2, *two, *strategy("fsdp2")))


@pytest.mark.slow
def test_a_sync_holds_no_second_copy_of_the_model(ranks: Ranks, smollm: Path) -> None:
    """Of 0.25 GiB in bfloat16, the largest parameter is 0.05 GiB; it is gathered from parts of its size."""
    probe = ("--trainer.callbacks", "rank_probes.SyncMemory", "--trainer.max_epochs", 0, *NO_VALIDATION)
    folder = ranks(
        2, *strategy("fsdp2"), *probe, "--model.kl", "null", "--data.val", "null", pretrained=smollm
    )
    for rank in range(2):
        measured = json.loads((folder / f"sync-{rank}.json").read_text())
        assert measured["sent"] == pytest.approx(0.25, abs=0.01)
        assert measured["extra"] < 0.2


def weights(folder: Path) -> dict[str, torch.Tensor]:
    checkpoint = AtomicCheckpointIO().load_checkpoint(folder / "checkpoints/last.ckpt", weights_only=True)
    return dict(checkpoint["state_dict"])


def test_a_sharded_run_goes_on_with_any_number_of_ranks(
    fit: Fit, ranks: Ranks, tmp_path: Path, tiny_model: Path
) -> None:
    sharded = (*SEVERAL_UPDATES, *strategy("fsdp2"), "--trainer.accumulate_grad_batches", 2, *NO_VALIDATION)
    whole = ranks(2, *sharded, "--trainer.max_epochs", 3)
    begun = ranks(2, *sharded, "--trainer.max_epochs", 2)
    last = begun / "checkpoints" / "last.ckpt"
    assert is_sharded(last)
    exported = load_tool("export_hf").export(last, tmp_path / "exported", str(tiny_model))
    for name, tensor in CausalLM(str(exported)).build().language_model.named_parameters():
        assert torch.equal(tensor, weights(begun)[f"policy.language_model.{name}"]), name

    on = (*SEVERAL_UPDATES, "--ckpt_path", last, "--trainer.max_epochs", 3, *NO_VALIDATION)
    alone = fit(*on, "--trainer.accumulate_grad_batches", 4)
    four = ranks(4, *on, *strategy("fsdp2"), "--trainer.accumulate_grad_batches", 1)
    same = ranks(2, *sharded, "--ckpt_path", last, "--trainer.max_epochs", 3)
    for folder, tolerance in ((same, 0.0), (alone, 1e-5), (four, 1e-5)):
        for name, tensor in weights(whole).items():
            assert torch.allclose(weights(folder)[name], tensor, rtol=0, atol=tolerance), (folder, name)


@pytest.mark.slow
def test_a_run_on_one_rank_goes_on_in_shards(fit: Fit, ranks: Ranks) -> None:
    one = (*SEVERAL_UPDATES, "--trainer.accumulate_grad_batches", 4, *NO_VALIDATION)
    whole, begun = fit(*one, "--trainer.max_epochs", 3), fit(*one, "--trainer.max_epochs", 2)
    on = (*SEVERAL_UPDATES, "--ckpt_path", begun / "checkpoints" / "last.ckpt", "--trainer.max_epochs", 3)
    two = ranks(2, *on, *strategy("fsdp2"), *NO_VALIDATION)
    for name, tensor in weights(whole).items():
        assert torch.allclose(weights(two)[name], tensor, rtol=0, atol=1e-5), name


@pytest.mark.slow
def test_shards_read_in_part_are_those_of_the_whole(ranks: Ranks) -> None:
    folder = ranks(2, *strategy("fsdp2"), "--trainer.max_epochs", 1, *CRITIC, *NO_VALIDATION)
    last = folder / "checkpoints" / "last.ckpt"
    critic = read_shards(last, "state_dict.critic.")["state_dict"]
    assert critic
    assert all(name.startswith("critic.") for name in critic)
    assert all(torch.equal(tensor, weights(folder)[name]) for name, tensor in critic.items())


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


def trainer(devices: int, strategy: pl.strategies.Strategy | str) -> pl.Trainer:
    return pl.Trainer(accelerator="cpu", devices=devices, strategy=strategy, logger=False)


@pytest.mark.parametrize(
    ("arguments", "size", "copies", "shards"),
    [
        ({}, 8, 1, 8),
        ({"replicas": 2}, 8, 1, 4),
        ({"tensor_parallel_size": 2}, 4, 2, 8),
        ({"replicas": 8}, 8, 1, 1),
    ],
)
def test_who_gets_which_data_and_which_part(
    arguments: dict[str, int], size: int, copies: int, shards: int
) -> None:
    planned = trainer(8, FSDP2Strategy(**arguments))
    ranks = data_ranks(planned)
    assert (ranks.rank, ranks.size, ranks.copies, num_shards(planned)) == (0, size, copies, shards)


def test_a_sum_over_ranks_that_share_layers_counts_each_sample_once() -> None:
    pairs = DataRanks(rank=0, size=2, copies=2)
    assert pairs.counted_once(torch.tensor([3.0, 0.5])).tolist() == [1.5, 0.25]
    count = pairs.counted_once(torch.tensor(6))
    assert (int(count), count.dtype) == (3, torch.int64)


def test_without_ranks_there_is_one() -> None:
    assert data_ranks(trainer(1, "auto")).size == num_shards(trainer(1, "auto")) == 1


def test_ranks_that_cannot_be_shared_out_are_refused(refused: Refused) -> None:
    said = refused("--trainer.strategy.class_path", "FSDP2Strategy", "--trainer.strategy.replicas", "2")
    assert "1 ranks" in said
    assert "replicas" in said


def test_fewer_than_one_replica_is_refused(refused: Refused) -> None:
    said = refused("--trainer.strategy.class_path", "FSDP2Strategy", "--trainer.strategy.replicas", "0")
    assert "replicas=0" in said


def test_lightnings_own_strategy_is_refused_with_ours() -> None:
    with pytest.raises(ValueError, match="set it to FSDP2Strategy"):
        place(pl.strategies.ModelParallelStrategy(), CausalLM("nowhere").build)


def test_fsdp1_with_copies_is_refused() -> None:
    hybrid = FSDPStrategy(sharding_strategy="HYBRID_SHARD", device_mesh=(2, 2))
    with pytest.raises(ValueError, match="sharding_strategy=HYBRID_SHARD keeps copies"):
        place(hybrid, CausalLM("nowhere").build)


def test_fewer_validation_prompts_than_ranks_are_refused(
    ranks: Ranks,
) -> None:
    with pytest.raises(AssertionError, match=r"data\.val has 1 prompts for 2 ranks: give it at least 2"):
        ranks(2, *strategy("ddp"), "--data.val.held_out", 1)
