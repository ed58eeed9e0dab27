"""What a reward model learns from, by hand and against transformers' and torch's own losses."""

import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from helpers.exact import F64, few
from hypothesis import given
from hypothesis import strategies as st

from grpo_pl.models.reward_model import ResponseEncoder
from grpo_pl.prompts.sources import Question
from grpo_pl.reward_modeling.calibration import Calibration
from grpo_pl.reward_modeling.objectives import BradleyTerry, LabeledBatch, LabeledResponse, StepLabels


def response(length: int, *judged: int, labels: tuple[float, ...]) -> LabeledResponse:
    return LabeledResponse(token_ids=list(range(length)), judged=list(judged), labels=list(labels))


def pairs(lengths: list[tuple[int, int]]) -> LabeledBatch:
    return LabeledBatch.collate(
        [[response(a, a - 1, labels=(1.0,)), response(b, b - 1, labels=(0.0,))] for a, b in lengths]
    )


@pytest.fixture(scope="module")
def encode(process_model: Path) -> ResponseEncoder:
    return ResponseEncoder.load(str(process_model))


def test_a_batch_by_hand() -> None:
    batch = LabeledBatch.collate([[response(3, 1, 2, labels=(0.25, 1.0))], [response(2, 1, labels=(0.0,))]])
    assert batch.token_ids.tolist() == [[0, 1, 2], [0, 1, 0]]
    assert batch.lengths.tolist() == [3, 2]
    assert batch.judged.tolist() == [[False, True, True], [False, True, False]]
    assert batch.labels.tolist() == [[0.0, 0.25, 1.0], [0.0, 0.0, 0.0]]


def test_bradley_terry_by_hand() -> None:
    batch = pairs([(2, 3), (3, 1)])
    scores = torch.full((4, 3), 99.0)  # what stands elsewhere counts for nothing
    scores[batch.judged] = torch.tensor([1.0, -1.0, 0.5, 2.0])
    verdict = BradleyTerry()(scores, batch)
    assert verdict.loss.tolist() == pytest.approx([math.log1p(math.exp(-2.0)), math.log1p(math.exp(1.5))])
    expected = [1 / (1 + math.exp(-m)) for m in (2.0, -1.5, -2.0, 1.5)]
    assert verdict.probability.tolist() == pytest.approx(expected)
    assert verdict.truth.tolist() == [1.0, 1.0, 0.0, 0.0]
    centered = BradleyTerry(center=0.1)(scores, batch).loss - verdict.loss
    assert centered.tolist() == pytest.approx([0.0, 0.1 * 2.5**2], abs=1e-6)


@few
@given(st.lists(st.floats(-20, 20), min_size=2, max_size=2), st.floats(-50, 50))
def test_bradley_terry_sees_only_differences(scores: list[float], shift: float) -> None:
    batch = pairs([(1, 1)])
    at = torch.tensor(scores, dtype=F64)[:, None]
    loss = BradleyTerry()(at, batch).loss
    assert torch.allclose(BradleyTerry()(at + shift, batch).loss, loss, atol=1e-9)
    at.requires_grad_()
    (gradient,) = torch.autograd.grad(BradleyTerry()(at, batch).loss.sum(), at)
    wrong = torch.sigmoid(at.detach()[1] - at.detach()[0])
    assert torch.allclose(gradient[:, 0], torch.cat([-wrong, wrong]), atol=1e-9)


def test_steps_are_averaged_within_a_response_then_over_responses() -> None:
    batch = LabeledBatch.collate([[response(4, 1, 3, labels=(1.0, 0.25))], [response(2, 0, labels=(0.0,))]])
    scores = torch.full((2, 4), 99.0)
    scores[batch.judged] = torch.tensor([0.3, -2.0, 1.0])
    verdict = StepLabels()(scores, batch)
    bce = F.binary_cross_entropy_with_logits
    first = [bce(torch.tensor(x), torch.tensor(y)) for x, y in ((0.3, 1.0), (-2.0, 0.25))]
    assert verdict.loss.tolist() == pytest.approx(
        [float(sum(first)) / 2, float(bce(torch.tensor(1.0), torch.tensor(0.0)))]
    )
    assert verdict.truth.tolist() == [1.0, 0.25, 0.0]
    assert verdict.probability.tolist() == pytest.approx(torch.tensor([0.3, -2.0, 1.0]).sigmoid().tolist())


def test_the_loss_is_at_its_minimum_where_the_probability_is_the_label() -> None:
    batch = LabeledBatch.collate([[response(2, 0, 1, labels=(0.25, 0.5))]])
    scores = torch.logit(torch.tensor([[0.25, 0.5]])).requires_grad_()
    (gradient,) = torch.autograd.grad(StepLabels()(scores, batch).loss.sum(), scores)
    assert torch.allclose(gradient, torch.zeros_like(gradient), atol=1e-7)


def test_a_pair_is_read_as_the_reward_reads_it(encode: ResponseEncoder) -> None:
    row = Question(text="2 + 3?", answer="", metadata={"chosen": "5", "rejected": "It is 6."})
    chosen, rejected = BradleyTerry().read(row, encode)
    assert chosen.token_ids == encode("2 + 3?", "5").token_ids
    assert rejected.token_ids == encode("2 + 3?", "It is 6.").token_ids
    assert (chosen.judged, rejected.judged) == (
        [len(chosen.token_ids) - 1],
        [len(rejected.token_ids) - 1],
    )
    assert (chosen.labels, rejected.labels) == ([1.0], [0.0])


@pytest.mark.parametrize(
    ("steps", "separator"), [(["a =\n", "5"], ""), (["a =", "5"], "\n")], ids=["own", "between"]
)
def test_steps_are_judged_where_the_reward_scores_them(
    encode: ResponseEncoder, steps: list[str], separator: str
) -> None:
    row = Question(text="q", answer="", metadata={"completions": steps, "labels": [True, 0.25]})
    (read,) = StepLabels(separator=separator).read(row, encode)
    encoded = encode("q", "a =\n5")
    assert read.token_ids == encoded.token_ids
    assert read.judged == [encoded.last_token(4), encoded.last_token(5)]
    assert read.labels == [1.0, 0.25]


@pytest.mark.parametrize(
    ("metadata", "sentence"),
    [
        ({"chosen": "5"}, "there is no column 'rejected'; its columns besides the prompt: 'chosen'"),
        ({}, "there is no column 'chosen'; its columns besides the prompt: none"),
        ({"chosen": "5", "rejected": 6}, "column 'rejected' holds 6, expected the text of a response"),
    ],
)
def test_a_row_that_is_no_pair_is_refused(
    encode: ResponseEncoder, metadata: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(sentence)):
        BradleyTerry().read(Question(text="q", answer="", metadata=metadata), encode)


@pytest.mark.parametrize(
    ("steps", "labels", "sentence"),
    [
        ("5", [1], "column 'completions' holds '5', expected a list of steps"),
        ([""], [1], "column 'completions' holds [''], expected a list of steps"),
        (["5"], [], "column 'labels' holds [], expected a label in [0, 1] for each of the 1 steps"),
        (["5"], [2], "column 'labels' holds [2], expected a label in [0, 1] for each of the 1 steps"),
        ([], [], "column 'labels' holds [], expected a label in [0, 1] for each of the 0 steps"),
        (
            ["5"],
            [math.nan],
            "column 'labels' holds [nan], expected a label in [0, 1] for each of the 1 steps",
        ),
    ],
)
def test_a_row_without_labelled_steps_is_refused(
    encode: ResponseEncoder, steps: object, labels: object, sentence: str
) -> None:
    row = Question(text="q", answer="", metadata={"completions": steps, "labels": labels})
    with pytest.raises(ValueError, match=re.escape(sentence)):
        StepLabels().read(row, encode)


# ----------------------------------------------------------------------------------------------- calibration


def test_calibration_by_hand() -> None:
    calibration = Calibration(bins=2)
    calibration.update(torch.tensor([0.5]), torch.tensor([0.2, 0.4, 0.9]), torch.tensor([0.0, 1.0, 1.0]))
    calibration.update(torch.tensor([1.0, 3.0]), torch.tensor([1.0]), torch.tensor([0.0]))
    measured = calibration.compute()
    assert float(measured["loss"]) == pytest.approx(1.5)
    assert float(measured["accuracy"]) == 0.5
    expected = (abs(0.6 - 1.0) + abs(1.9 - 1.0)) / 4
    assert float(measured["calibration_error"]) == pytest.approx(expected, abs=1e-6)
    assert calibration.reliability() == [
        (pytest.approx(0.3), 0.5, 2),
        (pytest.approx(0.95), 0.5, 2),
    ]


@few
@given(st.lists(st.tuples(st.floats(0, 1, width=32), st.booleans()), min_size=1, max_size=50))
def test_the_calibration_error_is_that_of_torchmetrics(events: list[tuple[float, bool]]) -> None:
    from torchmetrics.classification import BinaryCalibrationError

    probability = torch.tensor([p for p, _ in events], dtype=F64)
    truth = torch.tensor([t for _, t in events], dtype=F64)
    if ((probability * 10) % 1 == 0).any():  # on a bin's very border the two round differently
        return
    ours = Calibration()
    ours.update(torch.zeros(1), probability, truth)
    theirs = BinaryCalibrationError(n_bins=10)
    theirs.update(probability, truth.long())
    assert float(ours.compute()["calibration_error"]) == pytest.approx(float(theirs.compute()), abs=1e-5)


def test_an_indifferent_model_is_right_half_the_time_and_calibrated() -> None:
    calibration, batch = Calibration(), pairs([(1, 1)] * 3)
    verdict = BradleyTerry()(torch.zeros(6, 1), batch)
    calibration.update(verdict.loss, verdict.probability, verdict.truth)
    measured = {name: float(value) for name, value in calibration.compute().items()}
    assert measured == {"loss": pytest.approx(math.log(2)), "accuracy": 0.5, "calibration_error": 0.0}
