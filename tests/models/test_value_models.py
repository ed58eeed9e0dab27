"""Critics: what they say, what learns, and what stays still while they warm up."""

from pathlib import Path

import pytest
import torch
from helpers.commands import Fit, Refused
from helpers.run_results import NO_VALIDATION, column, rows, saved, untimed
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification

from grpo_pl.models import CausalLM, LanguageModel, TrunkValueHead, ValueHead, ValueModel
from grpo_pl.models.loading import load_language_model
from grpo_pl.models.packing import hidden_before_each_token

PPO = ("--model.critic", "ValueHead", "--model.advantage", "GAE")
CRITICS = {
    "own": PPO,
    "detached": (*PPO, "--model.critic", "TrunkValueHead"),
    "shared": (*PPO, "--model.critic", "TrunkValueHead", "--model.critic.detach", "false"),
}


def batch() -> tuple[Tensor, Tensor]:
    tokens = torch.randint(3, 300, (3, 10), generator=torch.Generator().manual_seed(0))
    return tokens, torch.arange(10).expand(3, 10) >= 4


def size(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def unmoved(state: dict[str, Tensor], pretrained: Path) -> dict[str, bool]:
    """Of each of the policy's parameters, whether it is still the pretrained one."""
    before = load_language_model(str(pretrained), "float32").state_dict()
    return {name: torch.equal(state[f"policy.language_model.{name}"], w) for name, w in before.items()}


# ------------------------------------------------------------------------------------------- what critics say


@pytest.fixture
def policy(tiny_model: Path) -> LanguageModel:
    return CausalLM(str(tiny_model)).build()


@pytest.fixture(scope="module")
def reward_model(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sequence classifier on another trunk than the tiny model's."""
    return classifier(tiny_model, tmp_path_factory.mktemp("reward_model"), labels=1)


def classifier(tiny_model: Path, folder: Path, labels: int) -> Path:
    config = AutoConfig.from_pretrained(tiny_model, num_labels=labels, pad_token_id=0)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
    return folder


def test_a_head_on_the_trunk_brings_no_second_trunk(policy: LanguageModel, tiny_model: Path) -> None:
    hidden_size = policy.language_model.config.hidden_size
    assert size(TrunkValueHead().build(policy)) == hidden_size + 1
    trunk = size(policy.language_model.base_model)
    assert size(ValueHead(str(tiny_model)).build(policy)) == trunk + hidden_size + 1


def test_both_critics_say_the_same_on_the_same_trunk(policy: LanguageModel, tiny_model: Path) -> None:
    own, on_trunk = ValueHead(str(tiny_model)).build(policy), TrunkValueHead().build(policy)
    hidden = policy(*batch(), 1.0).hidden
    assert (on_trunk(*batch(), hidden) == 0).all(), "it starts at zero"
    for critic in (own, on_trunk):
        nn.init.constant_(critic.head.weight, 0.3)
        nn.init.constant_(critic.head.bias, 0.1)
    values = on_trunk(*batch(), hidden)
    assert torch.allclose(own(*batch()), values, atol=1e-5)
    assert (values[~batch()[1]] == 0).all()


@pytest.mark.parametrize("detach", [True, False])
def test_the_value_loss_reaches_the_trunk_only_if_asked(policy: LanguageModel, detach: bool) -> None:
    critic = TrunkValueHead(detach).build(policy)
    nn.init.constant_(critic.head.weight, 0.3)
    critic(*batch(), policy(*batch(), 1.0).hidden).sum().backward()
    assert critic.head.weight.grad.abs().sum() > 0
    reached = [name for name, p in policy.named_parameters() if p.grad is not None]
    assert bool(reached) is not detach


def test_a_head_on_the_trunk_reads_half_precision_states(tiny_model: Path) -> None:
    policy = CausalLM(str(tiny_model), dtype="bfloat16").build()
    values = TrunkValueHead().build(policy)(*batch(), policy(*batch(), 1.0).hidden)
    assert values.dtype == torch.float32


@pytest.mark.parametrize("kind", ["own", "on_trunk"])
def test_values_are_float32_numbers_under_autocast(
    kind: str, policy: LanguageModel, tiny_model: Path
) -> None:
    """The trunk computes in bfloat16, its states are what they are; the head rounds nothing more."""
    critic = (ValueHead(str(tiny_model)) if kind == "own" else TrunkValueHead()).build(policy)
    nn.init.normal_(critic.head.weight, std=0.1, generator=torch.Generator().manual_seed(0))
    nn.init.constant_(critic.head.bias, 0.5)
    tokens, mask = batch()
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        hidden = policy(tokens, mask, 1.0).hidden
        values = critic(tokens, mask, hidden)[mask]
        states = None if kind == "on_trunk" else hidden_before_each_token(critic.trunk, tokens, mask)
        given = hidden if states is None else states.of_each(states.hidden)
    assert values.dtype == torch.float32
    assert (values != values.bfloat16()).float().mean() > 0.9, "more than bfloat16 can say"
    exact = given.double() @ critic.head.weight.double()[0] + critic.head.bias.double()
    assert (values - exact).abs().max() < 1e-6
    assert (exact.bfloat16() - exact).abs().max() > 1e-3, "what rounding to bfloat16 would cost"


def test_a_critic_from_a_reward_model_starts_with_its_scores_of_the_text_so_far(reward_model: Path) -> None:
    scorer = AutoModelForSequenceClassification.from_pretrained(reward_model)
    critic = ValueHead(str(reward_model), attention="tree").build()
    assert isinstance(critic, ValueModel)
    assert torch.equal(critic.head.weight, scorer.score.weight)
    assert (critic.head.bias == 0).all()
    tokens, mask = batch()
    with torch.no_grad():
        values = critic(tokens, mask)
        for t in range(4, 10):
            assert torch.allclose(values[:, t], scorer(tokens[:, :t]).logits[:, 0], atol=1e-5), t


def test_a_classifier_with_two_labels_is_no_critic(tiny_model: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="2 labels"):
        ValueHead(str(classifier(tiny_model, tmp_path, labels=2))).build()


def test_a_run_starts_its_critic_from_a_reward_model(fit: Fit, reward_model: Path) -> None:
    folder = fit(
        *(*PPO, "--model.critic.pretrained", str(reward_model), "--model.critic_lr", "1e-9"),
        *("--trainer.max_epochs", "1", *NO_VALIDATION),
    )
    scorer = AutoModelForSequenceClassification.from_pretrained(reward_model)
    head = saved(folder)["state_dict"]["critic.head.weight"]
    assert torch.allclose(head, scorer.score.weight, atol=1e-6)
    assert "critic.trunk.embed_tokens.weight" in saved(folder)["state_dict"]


# ------------------------------------------------------------------------------------------ how critics learn


@pytest.fixture(scope="module", params=CRITICS)
def warmed(request: pytest.FixtureRequest, fit: Fit) -> tuple[tuple[str, ...], Path]:
    """The arguments and the folder of a run of a warm-up of two iterations and one more iteration."""
    arguments = (
        *(*CRITICS[request.param], "--model.critic_warmup", "2", "--model.optimizer.weight_decay", "0.1"),
        *("--trainer.max_epochs", "3", "--checkpoint.save_top_k", "-1", *NO_VALIDATION),
    )
    return arguments, fit(*arguments)


def test_a_warm_up_moves_the_critic_and_nothing_else(
    warmed: tuple[tuple[str, ...], Path], tiny_model: Path
) -> None:
    """Not by weight decay, not by the value loss, and the optimizer remembers nothing of it."""
    _, folder = warmed
    checkpoint = saved(folder, "iteration-0002.ckpt")
    assert all(unmoved(checkpoint["state_dict"], tiny_model).values())
    assert checkpoint["state_dict"]["critic.head.weight"].abs().max() > 0
    (optimizer,) = checkpoint["optimizer_states"]
    policy, critic = (set(group["params"]) for group in optimizer["param_groups"])
    assert optimizer["state"].keys() == critic
    assert policy
    for row in rows(folder)[1:3]:
        assert row["train/ratio_deviation"] == 0
        assert "train/grad_norm" not in row
        assert row["train/critic_grad_norm"] > 0


def test_a_critic_s_gradient_does_not_shrink_the_policy_s_step(fit: Fit) -> None:
    """The norms are clipped each by itself, however large the value loss."""

    def policy(coefficient: float) -> dict[str, torch.Tensor]:
        folder = fit(
            *(*CRITICS["own"], "--model.value_loss.coefficient", coefficient, *NO_VALIDATION),
            *("--trainer.gradient_clip_val", "1e-3", "--trainer.max_epochs", "1"),
        )
        row = rows(folder)[1]
        assert row["train/grad_norm"] > 1e-3
        assert row["train/critic_grad_norm"] > 1e-3
        return {name: t for name, t in saved(folder)["state_dict"].items() if name.startswith("policy.")}

    small, large = policy(0.5), policy(500.0)
    assert all(torch.equal(small[name], large[name]) for name in small)


def test_after_the_warm_up_the_policy_learns(
    warmed: tuple[tuple[str, ...], Path], fit: Fit, tiny_model: Path
) -> None:
    """And a run interrupted in its warm-up ends like one that was not."""
    arguments, whole = warmed
    assert not any(unmoved(saved(whole)["state_dict"], tiny_model).values())
    part = fit(*arguments, "--ckpt_path", whole / "checkpoints" / "iteration-0001.ckpt")
    assert untimed(whole) == untimed(part)
    for name, tensor in saved(whole)["state_dict"].items():
        assert torch.equal(tensor, saved(part)["state_dict"][name]), name


def test_the_critic_has_a_learning_rate_of_its_own_under_any_schedule(fit: Fit) -> None:
    schedule = {"start_factor": 1.0, "end_factor": 0.5, "total_iters": 2}
    folder = fit(
        *(*PPO, "--model.critic_lr", "0.004", "--model.optimizer.lr", "0.001"),
        *("--model.lr_scheduler", "torch.optim.lr_scheduler.LinearLR"),
        *(f"--model.lr_scheduler.{name}={value}" for name, value in schedule.items()),
        *("--trainer.max_epochs", "1", *NO_VALIDATION),  # two optimizer steps
    )
    (optimizer,) = saved(folder)["optimizer_states"]
    rates = [group["lr"] for group in optimizer["param_groups"]]
    assert rates == pytest.approx([0.0005, 0.002])


def test_without_a_rate_of_its_own_the_critic_has_the_optimizers(fit: Fit) -> None:
    folder = fit(*CRITICS["detached"], "--trainer.max_epochs", "1", *NO_VALIDATION)
    (optimizer,) = saved(folder)["optimizer_states"]
    assert [group["lr"] for group in optimizer["param_groups"]] == [0.001, 0.001]
    assert [len(group["params"]) > 2 for group in optimizer["param_groups"]] == [True, False]


def test_the_explained_variance_depends_on_the_critic_alone(fit: Fit, reward_model: Path) -> None:
    """Not on the estimator's lambda, with which the target of the regression is mostly the critic's own."""

    def explained(lam: float) -> float:
        start = ("--model.critic.pretrained", reward_model, "--model.advantage.lam_value", lam)
        once = ("--trainer.max_epochs", 1, "--samples.every", 0, *NO_VALIDATION)
        return column(fit(*PPO, *start, *once), "train/explained_variance")[0]

    assert explained(1.0) == explained(0.5) < 0


def test_a_critic_that_learns_is_wrong_by_less(fit: Fit) -> None:
    folder = fit(
        *(*CRITICS["detached"], "--model.critic_lr", "0.03", "--model.critic_warmup", "8"),
        *("--trainer.max_epochs", "8", "--data.update_epochs", "4", *NO_VALIDATION),
    )
    learned = rows(folder)[1:]
    assert learned[0]["train/explained_variance"] == 0, "a critic that says 0 of everything explains nothing"
    losses = [row["train/value_loss"] for row in learned]
    assert sum(losses[4:]) < sum(losses[:4])


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--model.critic_warmup", "1"), "model.critic to ValueHead"),
        (("--model.critic_lr", "0.1"), "model.critic to ValueHead"),
        ((*PPO, "--model.critic_lr", "0"), "model.critic_lr=0.0: expected more than 0"),
        ((*PPO, "--model.critic_warmup", "-1"), "model.critic_warmup=-1: expected 0 or more"),
        (("--model.critic", "TrunkValueHead"), "does not use it: set model.critic to null"),
        (("--model.advantage", "GAE"), "model.advantage GAE needs a critic"),
    ],
)
def test_a_critic_that_cannot_be_meant_is_refused(
    fit: Fit, refused: Refused, arguments: tuple[str, ...], sentence: str
) -> None:
    assert sentence in refused(fit, *arguments, *NO_VALIDATION)
