"""Config files as they stand on the disk: what is no mapping of settings is refused before it is read."""

import argparse
import re
from pathlib import Path
from typing import Any

import yaml
from typing_extensions import override

from grpo_pl import __version__
from grpo_pl.system.refusal import ConfigError, fail, nearest

EXAMPLE = "settings such as `data: {group_size: 8}`"
MAX_VALUES = 100_000
"""Far above any config: aliases of aliases (a "billion laughs") name more in a few lines."""


JOBS = "policy", "reward_model"
"""What the key `job` may be."""


class StrictLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Plain data only, as PyYAML's SafeLoader; a key that stands twice is an error."""

    @override
    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node."""
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"the key {key.value!r} stands there twice"
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def read_config(path: str) -> dict[str, Any]:
    """The settings in a config file.

    Raises:
        ConfigError: In one sentence with the file, and the line where there is one.
        FileNotFoundError: If there is none.
    """
    where = f"config {path}"
    settings = parsed(path, where)
    if settings is None:
        raise ConfigError(f"{where}: is empty; write {EXAMPLE} into it")
    if not isinstance(settings, dict) or not all(isinstance(key, str) for key in settings):
        raise ConfigError(f"{where}: expected {EXAMPLE}, got {shortened(settings)}")
    for section in ("model", "data", "trainer"):
        if section in settings and not isinstance(settings[section], dict | str):
            raise ConfigError(f"{where}: {section}: expected settings, got {shortened(settings[section])}")
    if (count := num_values(settings, {}, ())) > MAX_VALUES:
        raise ConfigError(f"{where}: its aliases name {count} values, or themselves; write them out")
    return settings


def read_job_config(path: str) -> dict[str, Any]:
    """The same, of a config for `fit`: the parser would pass over an empty section, whatever its name.

    Raises:
        ConfigError: In one sentence with the file.
        FileNotFoundError: If there is none.
    """
    settings = read_config(path)
    for section, said in settings.items():
        if said == {}:
            raise ConfigError(f"config {path}: {section}: is empty; write settings into it, or leave it out")
    return settings


def parsed(path: str, where: str) -> Any:
    """What a YAML file says."""
    try:
        return yaml.load(Path(path).read_bytes().decode("utf-8-sig"), StrictLoader)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error.strerror}); name a YAML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: is not UTF-8 at its byte {error.start}; name a YAML file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: is not YAML ({reason(error)}); mend it there") from error
    except (ValueError, RecursionError) as error:  # a date that is none, brackets in brackets in brackets
        raise ConfigError(f"{where}: is not YAML ({error}); mend it") from error


def reason(error: yaml.YAMLError) -> str:
    """What is wrong and where, in one line."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    mark = error.problem_mark or error.context_mark
    place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{' '.join(filter(None, (error.context, error.problem)))}{place}"


def num_values(value: Any, known: dict[int, int], inside: tuple[int, ...]) -> int:
    """How many values a nest of lists and mappings holds when aliases are written out; many in a circle."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) in inside:
        return MAX_VALUES + 1
    if id(value) not in known:
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(num_values(part, known, (*inside, id(value))) for part in parts)
    return known[id(value)]


def shortened(value: Any) -> str:
    """A value as a message shows it."""
    return "null" if value is None else f"{value!r:.60}"


def other_version(path: str) -> str:
    """A half-sentence if the first line of a file says that another version of grpo_pl wrote it."""
    with Path(path).open("rb") as file:
        first = re.match(rb"# grpo_pl==([\w.+-]{1,40})", file.readline(200))
    version = first[1].decode() if first else __version__
    return "" if version == __version__ else f" (grpo_pl {version} wrote {path}, and this is {__version__})"


def read_ahead(args: list[str]) -> tuple[str, str]:
    """The job that the command line and its config files name, and which of these are of another version.

    The job decides what else they may say.

    Raises:
        ConfigError: If a config file is none, in one sentence.
    """
    try:
        said = said_ahead(args)
        read = [read_job_config(path) for path in said.config]
    except (argparse.ArgumentError, FileNotFoundError):
        return "policy", ""  # whatever is wrong there, the parser itself will name it
    job = said.job or ([config["job"] for config in read if "job" in config] or ["policy"])[-1]
    if not isinstance(job, str) or job not in JOBS:
        fail(f"job: expected one of {', '.join(JOBS)}, got {job}{nearest(str(job), JOBS)}")
    return job, "".join(map(other_version, said.config))


def config_files(args: list[str]) -> list[str]:
    """The config files that a command line names; none if it cannot be read."""
    try:
        return list(said_ahead(args).config)
    except argparse.ArgumentError:
        return []


def said_ahead(args: list[str]) -> argparse.Namespace:
    """The options that decide how the others are read."""
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    reader.add_argument("-c", "--config", action="append", default=[])
    reader.add_argument("--job")
    return reader.parse_known_args(args)[0]
