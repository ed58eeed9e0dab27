"""What the loggers of a study's run are told."""

from pathlib import Path

import pytest
import yaml
from jsonargparse import Namespace
from lightning.pytorch.loggers import CSVLogger

from grpo_pl.callbacks.loggers import label_loggers

FOLDER = Path("runs/models/ppo/seed-3")


def logger(cls: str, **arguments: object) -> Namespace:
    return Namespace(class_path=f"lightning.pytorch.loggers.{cls}", init_args=Namespace(**arguments))


def test_weights_and_biases_gets_name_group_and_tags():
    found = logger("WandbLogger", name=None, group=None, tags=None)
    label_loggers(found, FOLDER)
    assert found.init_args.as_dict() == {
        "name": "ppo/seed-3",
        "group": "models/ppo",
        "tags": ["study=models", "variant=ppo", "seed=3"],
    }


def test_mlflow_gets_the_same_as_run_name_and_tags_beside_those_of_the_config():
    found = [logger("MLFlowLogger", run_name=None, tags={"owner": "me", "seed": "mine"})]
    label_loggers(found, FOLDER)
    assert found[0].init_args.as_dict() == {
        "run_name": "ppo/seed-3",
        "tags": {"study": "models", "variant": "ppo", "seed": "mine", "group": "models/ppo", "owner": "me"},
    }


def test_what_a_config_says_stays():
    found = logger("WandbLogger", name="mine", group="ours", tags=["x"])
    label_loggers(found, FOLDER)
    assert found == logger("WandbLogger", name="mine", group="ours", tags=["x"])


@pytest.mark.parametrize("loggers", [False, True, None, logger("CSVLogger", name="x")])
def test_other_loggers_are_left_alone(loggers):
    label_loggers(loggers, FOLDER)
    assert not isinstance(loggers, Namespace) or loggers == logger("CSVLogger", name="x")


def test_a_run_outside_of_a_study_has_no_labels():
    found = logger("WandbLogger", name=None, group=None, tags=None)
    label_loggers(found, Path("runs/quickstart"))
    assert found == logger("WandbLogger", name=None, group=None, tags=None)


class WandbLogger(CSVLogger):
    """Takes what the true one takes, which is not installed."""

    def __init__(
        self, save_dir: str, name: str | None = None, group: str | None = None, tags: list[str] | None = None
    ) -> None:
        super().__init__(save_dir, name or "")
        self.said = (group, tags)


def test_fit_labels_the_loggers_of_its_config(tmp_path, fit):
    options = ("--trainer.max_epochs", 1, "--trainer.limit_val_batches", 0, "--samples.every", 0)
    named = ("--trainer.logger", f"{__name__}.WandbLogger", "--trainer.logger.save_dir", tmp_path / "logs")
    folder = fit(*options, *named, root=tmp_path / "study" / "one" / "seed-1")
    said = yaml.safe_load((folder / "config.yaml").read_text())["trainer"]["logger"]["init_args"]
    assert (said["name"], said["group"], said["tags"][1]) == ("one/seed-1", "study/one", "variant=one")
