"""What the process that runs are forked from is besides its imports; imported there alone, and first."""

import os
import signal

from grpo_pl.quiet import tame_logs
from grpo_pl.rewards.sandbox.kernel import die_with_parent

os.setsid()  # what ends the group of a command reaches the command alone, which tells its runs
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # where SLURM signals every process, as it does
die_with_parent()
tame_logs()  # libraries read what it says when they are imported
