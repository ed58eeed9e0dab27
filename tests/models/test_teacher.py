"""A policy's distance from a teacher is that of whole logits, which never exist."""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from grpo_pl.commands.tiny_model import make_tiny_model
from grpo_pl.functional import forward_kl, generalized_jsd, reverse_kl
from grpo_pl.models import CausalLM, LanguageModel, LoRA
from grpo_pl.models.adapter import AdapterOff
from grpo_pl.models.candidates import top_logprobs
from grpo_pl.models.heads import LayerHead
from grpo_pl.models.teacher import Teacher, taught_logprobs

KINDS = {"reverse": reverse_kl, "forward": forward_kl, "jsd": partial(generalized_jsd, beta=0.3)}
TEMPERATURE, TOKENS = 0.7, 7


class Counted(nn.Linear):
    """A layer that remembers the most rows of logits that it was asked for at once."""

    most = 0

    def forward(self, states: Tensor) -> Tensor:
        self.most = max(self.most, len(states))
        return super().forward(states)


@dataclass
class Pair:
    """Seven tokens' states in a student of 4 and a teacher of 6 numbers, over 11 tokens or more."""

    rows: int = 11
    states: Tensor = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.student, self.teacher = Counted(4, 11), Counted(6, self.rows)
        self.states = torch.randn(TOKENS, 4, requires_grad=True)
        self.taught, self.targets = torch.randn(TOKENS, 6), torch.randint(11, (TOKENS,))

    def scores(self, kind: str, chunk_tokens: int, entropy: str = "gradient"):
        teacher = Teacher(self.taught, LayerHead(self.teacher, 1.0, None), KINDS[kind])
        head = LayerHead(self.student, 1.0, None)
        given = self.states, self.targets, head, TEMPERATURE, chunk_tokens
        return taught_logprobs(*given, entropy, teacher)

    @property
    def dense(self) -> tuple[Tensor, Tensor]:
        of_student = nn.functional.linear(self.states, self.student.weight, self.student.bias)
        of_teacher = nn.functional.linear(self.taught, self.teacher.weight, self.teacher.bias).detach()
        return (of_student / TEMPERATURE).log_softmax(-1), (of_teacher / TEMPERATURE).log_softmax(-1)


def gradients(of: Tensor, pair: Pair) -> tuple[Tensor, ...]:
    return torch.autograd.grad(of, (pair.states, pair.student.weight, pair.student.bias))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk_tokens", [1, 3, 100])
def test_divergences_and_their_gradients_are_those_of_whole_logits(kind: str, chunk_tokens: int) -> None:
    pair = Pair()
    student, teacher = pair.dense
    scores = pair.scores(kind, chunk_tokens)
    whole = KINDS[kind](student, teacher)
    torch.testing.assert_close(scores.divergence, whole, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(scores.reverse_kl, reverse_kl(student, teacher).detach(), rtol=1e-6, atol=1e-6)
    weights = torch.randn(TOKENS)
    ours, dense = (gradients((value * weights).sum(), pair) for value in (scores.divergence, whole))
    for one, other in zip(ours, dense, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_log_probabilities_and_entropy_beside_it_are_the_policys_own() -> None:
    def dense(pair: Pair) -> dict[str, Tensor]:
        student, _ = pair.dense
        chosen = student[torch.arange(TOKENS), pair.targets]
        return {"logprobs": chosen, "entropy": -(student.exp() * student).sum(-1)}

    for name in ("logprobs", "entropy"):
        pair, other = Pair(), Pair()
        ours, whole = getattr(pair.scores("reverse", 2), name), dense(other)[name]
        torch.testing.assert_close(ours, whole, rtol=1e-6, atol=1e-6)
        for got, expected in zip(gradients(ours.sum(), pair), gradients(whole.sum(), other), strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert not Pair().scores("reverse", 2, "value").entropy.requires_grad


def test_the_logits_of_a_whole_batch_never_exist_and_the_teacher_gets_no_gradient() -> None:
    pair = Pair()
    scores = pair.scores("jsd", 2)
    (scores.divergence.sum() + scores.logprobs.sum()).backward()
    assert (pair.student.most, pair.teacher.most) == (2, 2)
    assert pair.teacher.weight.grad is None
    assert not scores.reverse_kl.requires_grad


def test_rows_of_padding_that_the_teacher_has_more_count_in_its_normalisation_alone() -> None:
    pair = Pair(rows=16)
    student, teacher = pair.dense
    torch.testing.assert_close(pair.scores("reverse", 3).divergence, reverse_kl(student, teacher[:, :11]))


@pytest.mark.parametrize("chunk_tokens", [1, 3, 100])
def test_the_teacher_names_its_most_probable_tokens(chunk_tokens: int) -> None:
    pair = Pair()
    _, teacher = pair.dense
    head = LayerHead(pair.teacher, 1.0, None)
    logprobs, ids, top = top_logprobs(pair.taught, pair.targets, head, TEMPERATURE, chunk_tokens, 4)
    torch.testing.assert_close(top, teacher.sort(-1, descending=True).values[:, :4])
    torch.testing.assert_close(top, teacher.gather(-1, ids.long()))
    torch.testing.assert_close(logprobs, teacher[torch.arange(TOKENS), pair.targets])
    assert pair.teacher.most == min(chunk_tokens, TOKENS)


# ----------------------------------------------------------------------------------------------- whole models


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of another size with the same tokenizer."""
    return make_tiny_model(tmp_path_factory.mktemp("teacher") / "model", key_value_heads=2, seed=3)


def batch() -> tuple[Tensor, Tensor]:
    torch.manual_seed(2)
    mask = torch.zeros(3, 9, dtype=torch.bool)
    mask[0, 4:9] = mask[1, 3:7] = mask[2, 5:6] = True
    return torch.randint(3, 320, (3, 9)), mask


def divergence(policy: LanguageModel, teacher: nn.Module) -> Tensor:
    tokens, mask = batch()
    with torch.no_grad():
        said = teacher(tokens, mask, TEMPERATURE, teaches=True)
    given = Teacher(said.hidden, said.head, reverse_kl)
    return policy(tokens, mask, TEMPERATURE, teacher=given).divergence


def dense(model: nn.Module) -> Tensor:
    tokens, mask = batch()
    logits = model(input_ids=tokens).logits / TEMPERATURE
    distribution = torch.zeros(*mask.shape, logits.shape[-1])
    distribution[:, 1:] = logits[:, :-1].log_softmax(-1)
    return torch.where(mask[..., None], distribution, 0.0)


@pytest.mark.parametrize("attention", ["sdpa", "tree"])
def test_a_policy_is_as_far_from_a_larger_teacher_as_their_logits_say(
    tiny_model: Path, larger: Path, attention: str
) -> None:
    options = {"attention": attention, "chunk_tokens": 4}
    policy = CausalLM(str(tiny_model), **options).build()
    teacher = CausalLM(str(larger), **options).build().requires_grad_(False).eval()
    ours, weight = divergence(policy, teacher), policy.language_model.get_input_embeddings().weight
    whole = reverse_kl(dense(policy.language_model), dense(teacher.language_model))
    torch.testing.assert_close(ours, whole, rtol=1e-4, atol=1e-5)
    assert (ours[batch()[1]] > 0.01).all()
    got, expected = (torch.autograd.grad(x.sum(), weight)[0] for x in (ours, whole))
    assert (got - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_a_policy_without_its_adapters_teaches_the_policy_with_them(tiny_model: Path) -> None:
    policy = LoRA(str(tiny_model), r=2).build()
    plain = CausalLM(str(tiny_model)).build()
    reference = AdapterOff().build(policy)
    assert divergence(policy, reference).abs().max() < 1e-5
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    ours = divergence(policy, reference)
    torch.testing.assert_close(ours, divergence(policy, plain), rtol=1e-4, atol=1e-5)
    assert ours.max() > 0.01
