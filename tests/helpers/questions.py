"""Questions in files and in configs."""

import json
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser

from grpo_pl.prompts import ChatFormat, Example, PromptSource

SHOTS = [Example(question="1+1", answer="2")]


def write(path: Path, *rows: Any) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def parse(config: dict[str, Any]) -> Any:
    """What the CLI builds of `train` and `format`."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--train", type=PromptSource)
    parser.add_argument("--val", type=PromptSource | None)
    parser.add_argument("--format", type=ChatFormat, default=ChatFormat())
    return parser.instantiate(parser.parse_object(config))
