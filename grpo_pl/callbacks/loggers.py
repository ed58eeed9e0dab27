"""Runs of a study have the same groups and tags in every logger that knows such."""

from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from grpo_pl.runs.layout import study_place


def label_loggers(loggers: Any, folder: Path) -> None:
    """Tell the loggers of a config which study, variant and seed a run in this folder is of.

    Weights & Biases gets them as name, group and tags; MLflow as run name and tags, of which one is `group`.
    What the config says itself stays. Outside of a study, and for other loggers, nothing happens.

    Args:
        loggers: `trainer.logger`: changed in place.
        folder: `trainer.default_root_dir`.
    """
    where = study_place(folder)
    for logger in loggers if isinstance(loggers, list) else [loggers]:
        if where is None or not isinstance(logger, Namespace):
            continue
        name, labels = f"{where.variant}/seed-{where.seed}", where._asdict()
        group = f"{where.study}/{where.variant}"  # what runs that differ by their seed have in common
        match logger.class_path.rpartition(".")[2]:
            case "WandbLogger":
                tags = [f"{key}={value}" for key, value in labels.items()]
                say(logger.init_args, name=name, group=group, tags=tags)
            case "MLFlowLogger":
                given = logger.init_args.get("tags") or {}
                logger.init_args["tags"] = labels | {"group": group} | dict(given)
                say(logger.init_args, run_name=name)


def say(arguments: Namespace, **values: Any) -> None:
    """Set those arguments that have no value."""
    for name, value in values.items():
        arguments[name] = arguments.get(name) or value
