"""A real config, of which runs are made up."""

import contextlib
import io
from typing import Any

import pytest
import yaml
from helpers.repository import ROOT


@pytest.fixture(scope="session")
def config() -> dict[str, Any]:
    """What `fit --print_config` says of configs/tiny.yaml."""
    from grpo_pl.__main__ import main

    said = io.StringIO()
    with contextlib.redirect_stdout(said), pytest.raises(SystemExit):
        main(["fit", "--config", str(ROOT / "configs" / "tiny.yaml"), "--print_config"])
    read = yaml.safe_load(said.getvalue())
    assert isinstance(read, dict)
    return read
