"""A study that is made up, and a real browser."""

import contextlib
import io
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.made_up import write_run, write_samples

MODELS = {"base": 2, "no-kl": 1, "critic": 3}
CHANGES: dict[str, dict[str, Any]] = {
    "base": {},
    "no-kl": {"model.kl": None},
    "critic": {
        "model.critic": {"class_path": "grpo_pl.models.ValueHead", "init_args": {"pretrained": ""}},
        "model.advantage": {"class_path": "grpo_pl.advantages.GAE", "init_args": {"lam": 0.9}},
    },
}


@pytest.fixture(scope="session")
def study(config, tmp_path_factory) -> Path:
    """Three variants of four seeds: the first two reach the same accuracy, the third a lower one.

    Of the third, seed 4 was cut off and seed 5 never started.
    """
    out = tmp_path_factory.mktemp("studies") / "models"
    for variant, gains in {"base": 0.4, "no-kl": 0.41, "critic": 0.1}.items():
        for seed in (1, 2, 3, 4):
            wobble = (0.0, 0.02, -0.015, 0.01)[(seed + len(variant)) % 4]
            cut = variant == "critic" and seed == 4
            folder = write_run(
                out / variant / f"seed-{seed}",
                config,
                seed=seed,
                accuracies=[0.25, 0.25 + gains / 2, 0.25 + gains + wobble][: 2 if cut else 3],
                changes=CHANGES[variant],
                planned=2,
                models=MODELS[variant],
                cost=1.5 if variant == "critic" else 1.0,
            )
            write_samples(folder, {"What is 40 + 2?": f"{variant} <b>says</b> | 42", "What is 1 + 1?": "2"})
    (out / "critic" / "seed-5").mkdir()
    return out


@pytest.fixture(scope="session")
def report(study) -> Path:
    """The study's folder with its report in it, and what the command printed in `terminal.txt`."""
    from grpo_pl.__main__ import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        main(["compare", str(study), "--base", "base"])
    (study / "terminal.txt").write_text(said.getvalue(), encoding="utf-8")
    return study


@pytest.fixture(scope="module")
def browser(request) -> Iterator[Callable[[], Any]]:
    """A headless Chromium; without one, its tests fail where they are asked for and are skipped elsewhere."""
    from selenium import webdriver

    programs = [shutil.which("chromium"), shutil.which("chromedriver")]
    if not all(programs):
        missing = "no chromium and chromedriver: bash tools/test.sh --browser installs them"
        (pytest.fail if "browser" in request.config.option.markexpr else pytest.skip)(missing)
    options = webdriver.ChromeOptions()
    options.binary_location = programs[0]
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (
        *(
            "headless=new",
            "no-sandbox",
            "disable-gpu",
            "disable-quic",
            "no-first-run",
            "disable-dev-shm-usage",
        ),
        *("disable-background-networking", "disable-component-update", "disable-sync"),
    ):
        options.add_argument(f"--{flag}")
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(programs[1]))
    yield driver
    driver.quit()
