"""`grpo_pl bench` from a clone that need not be installed: python tools/bench.py [options of bench]."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from grpo_pl.__main__ import main

main(["bench", *sys.argv[1:]])
