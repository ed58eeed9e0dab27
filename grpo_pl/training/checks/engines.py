"""Checks that the engines go together, and with their requests."""

import logging
from collections.abc import Mapping
from pathlib import Path

from grpo_pl.rollout.engine import RolloutEngine, SamplingConfig
from grpo_pl.rollout.limits import Episodes
from grpo_pl.rollout.replay import ReplayEngine
from grpo_pl.system.refusal import ArgumentError, ConfigError, check_at_least

log = logging.getLogger(__name__)


def check_sampling(sampling: SamplingConfig, val_max_tokens: int | None, val_samples: int) -> None:
    """Refuse a temperature that makes all responses alike, and impossible sizes of a validation."""
    check_at_least(0, val_samples=val_samples)
    if val_max_tokens is not None and val_max_tokens < 1:
        raise ArgumentError(f"val_max_tokens={val_max_tokens}: expected 1 or more, or null")
    if sampling.temperature == 0:
        raise ArgumentError("sampling.temperature=0 gives every response of a group alike: set it above 0")


def warn_of_episodes(plays: bool, limits: Episodes) -> None:
    """Warn of limits of episodes, where none are played."""
    if not plays and limits != Episodes():
        log.warning("data.episodes is set, and data.environment is null: responses are one turn each")


def check_engines(
    engine: RolloutEngine,
    val_engine: RolloutEngine | None,
    validates: bool,
    sampling: SamplingConfig,
    head_dtypes: Mapping[str, str | None],
) -> None:
    """Refuse a validation without an engine to answer it, an unused engine, and truncation it cannot show."""
    for each in (engine, val_engine or engine):
        each.check_sampling(sampling)
    if one_sided := different_heads(engine, head_dtypes):
        log.warning("%s, so the log-probabilities of one model differ: set --head_dtype alone", one_sided)
    if validates and engine.offline and val_engine is None:
        raise ConfigError(
            f"data.engine {type(engine).__name__} has responses to training prompts alone, and data.val is "
            "set: set data.val_engine, for instance to VLLMEngine, or data.val to null"
        )
    if val_engine is not None and not engine.offline:
        raise ConfigError(
            "data.val_engine is for a data.engine that does not sample, such as ReplayEngine: set it to null"
        )
    if val_engine is not None and val_engine.offline:
        raise ConfigError("data.val_engine does not sample: set it to VLLMEngine, for instance")


def different_heads(engine: RolloutEngine, of_models: Mapping[str, str | None]) -> str:
    """The types in which LM heads multiply, in words, where they differ; else nothing."""
    heads = dict(of_models) if engine.offline else {**of_models, "data.engine": engine.head_dtype}
    if len(set(heads.values())) < 2:
        return ""
    return ", ".join(f"{key}.head_dtype is {dtype or 'null'}" for key, dtype in heads.items())


def check_whose_rollouts(engine: RolloutEngine, folder: Path, corrects_mismatch: bool) -> None:
    """Refuse rollouts that the run would move aside; warn of rollouts of another policy."""
    if isinstance(engine, ReplayEngine) and folder.resolve() in Path(engine.path).resolve().parents:
        raise ConfigError(
            f"data.engine.path={engine.path} lies in the folder of this very run: set "
            "trainer.default_root_dir to another one"
        )
    if (engine.offline or engine.lookahead) and not corrects_mismatch:
        old = f"samples with weights up to {engine.lookahead} iterations old"
        log.warning(
            "data.engine %s and nothing corrects for it: set model.correction to ImportanceCorrection",
            "has responses of another policy" if engine.offline else old,
        )
