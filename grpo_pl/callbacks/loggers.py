"""Gives runs of a study the same groups and tags in every logger that has them."""

from pathlib import Path
from typing import Any

from jsonargparse import Namespace

from grpo_pl.runs.layout import study_place


def label_loggers(loggers: Any, folder: Path) -> None:
    """Label the loggers of a config, in place, with the study, variant and seed of the run in this folder.

    Weights & Biases gets them as name, group and tags; MLflow as run name and tags, one of which is `group`.
    Labels in the config stay. Outside a study, and for other loggers, nothing changes.
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
                fill_in(logger.init_args, name=name, group=group, tags=tags)
            case "MLFlowLogger":
                configured = logger.init_args.get("tags") or {}
                logger.init_args["tags"] = labels | {"group": group} | dict(configured)
                fill_in(logger.init_args, run_name=name)


def fill_in(arguments: Namespace, **values: Any) -> None:
    """Set those arguments that have no value."""
    for name, value in values.items():
        arguments[name] = arguments.get(name) or value
