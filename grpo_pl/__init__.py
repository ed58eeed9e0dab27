"""Reinforcement learning on language models, with every part swappable.

The map of the package:

| the spine | what it holds |
|---|---|
| `types` | the vocabulary: Prompt, Rollout, Feedback, TokenScores, Credit, Experience |
| `loop` | the loop alone: sync, sample, make experience, yield |
| `minibatches` | Experience -> optimizer steps of micro-batches |
| `experience` | Rollout -> rewards -> scores -> advantages -> Experience |
| `module` | PolicyOptimization: holds the components, takes the training step |
| `datamodule` | RolloutDataModule: prompts, engine, schedule |

| a stage, in the order of the flow | from -> to | config key |
|---|---|---|
| `prompts/` | questions -> Prompt | `data.train`, `data.val`, `data.format` |
| `rollout/` | Prompt -> Rollout | `data.engine`, `data.sampling`, `data.resample` |
| `rewards/` | Rollout -> Feedback | `model.rewards`, `model.verifiers`, `model.reward_transforms` |
| `models/` | sequences -> TokenScores | `model.policy`, `model.reference`, `model.critic` |
| `advantages/` | Feedback -> Credit | `model.advantage` |
| `losses/` | Credit, TokenScores -> TokenLoss | `model.loss`, `model.kl`, `model.entropy`, `model.masks` |
| `functional/` | the mathematics of all of them, pure | |

| a back room | what it is for |
|---|---|
| `training/` | the update on Lightning: optimizer, gradients, strategies, ranks, validation, checks |
| `callbacks/` | what one looks at: metrics, samples, curves, progress, alarms |
| `runs/` | what is kept: folder, lock, manifest, checkpoints, preemption |
| `reward_modeling/` | the other job: reward models |
| `config/` | from the command line to components |
| `commands/` | what one types |
| `system/` | the machine below: files, memory, output, collectives |
"""

import os

from grpo_pl.system import lazy_torchmetrics

__version__ = "0.2.0"

if "OMP_WAIT_POLICY" not in os.environ:
    # Before torch: threads that wait for each other sleep after microseconds. By itself GNU's OpenMP has them
    # spin for milliseconds, and processes that share cores keep each other from working: ten times slower.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")

lazy_torchmetrics.install()  # before Lightning, wherever it is imported
