"""Calibration of predicted probabilities."""

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric
from typing_extensions import override


class Calibration(Metric):
    """Loss, accuracy and calibration of probabilities, over all ranks.

    `calibration_error` is the expected calibration error over `bins` equal bins of the probability: the mean,
    over events, of |mean probability - frequency| of their bin (Naeini et al. 2015; Guo et al. 2017, arXiv:
    1706.04599, eq. 3, for a binary event rather than the confidence in the likelier class). `accuracy` is the
    share of events on whose likelier side the model is; a probability of exactly 1/2 predicts no.
    """

    sums: Tensor
    loss: Tensor

    def __init__(self, bins: int = 10) -> None:
        super().__init__()
        self.bins = bins
        self.add_state("sums", torch.zeros(bins, 4, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("loss", torch.zeros(2, dtype=torch.float64), dist_reduce_fx="sum")

    @override
    def update(
        self, loss: Float[Tensor, "E"], probability: Float[Tensor, "K"], truth: Float[Tensor, "K"]
    ) -> None:
        correct = (probability > 0.5) == (truth > 0.5)
        rows = torch.stack([torch.ones_like(probability), probability, truth, correct.float()], -1)
        where = (probability * self.bins).long().clamp(max=self.bins - 1)
        self.sums.index_add_(0, where, rows.double())
        self.loss += torch.stack([loss.detach().sum(), loss.new_tensor(len(loss))]).double()

    @override
    def compute(self) -> dict[str, Tensor]:
        """`loss` in nats an example, `accuracy`, `calibration_error`."""
        count, predicted, observed, correct = self.sums.unbind(-1)
        return {
            "loss": self.loss[0] / self.loss[1],
            "accuracy": correct.sum() / count.sum(),
            "calibration_error": (predicted - observed).abs().sum() / count.sum(),
        }

    def reliability(self) -> list[tuple[float, float, int]]:
        """Mean probability, frequency and events of each bin that is not empty."""
        rows = self.sums.tolist()
        return [(predicted / n, observed / n, int(n)) for n, predicted, observed, _ in rows if n]
