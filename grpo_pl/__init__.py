"""grpo_pl: reinforcement learning on language models, with every part swappable."""

import os

from grpo_pl.system import lazy_torchmetrics

__version__ = "0.1.0"

if "OMP_WAIT_POLICY" not in os.environ:
    # Before torch: threads that wait for each other sleep after microseconds. By itself GNU's OpenMP has them
    # spin for milliseconds, and processes that share cores keep each other from working: ten times slower.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

lazy_torchmetrics.install()  # before Lightning, wherever it is imported
