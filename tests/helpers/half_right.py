"""A verifier that finds about half of the responses right, also those of a random model."""

import hashlib
from collections.abc import Sequence

from grpo_pl.rewards.base import Verifier
from grpo_pl.types import Sample


class HalfRight(Verifier):  # type: ignore[misc]
    """Right are the responses whose hash, with the question, is even."""

    def score(self, samples: Sequence[Sample]) -> list[float]:
        texts = [f"{sample.prompt.text}{sample.response}" for sample in samples]
        return [float(hashlib.sha256(text.encode()).digest()[0] % 2 == 0) for text in texts]

    def extract(self, response: str) -> str:
        return response
