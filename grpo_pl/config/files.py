"""Reads config files: a file that is not a mapping of settings is refused."""

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
"""The values of the key `job`."""


class StrictLoader(yaml.SafeLoader):  # type: ignore[misc]
    """Plain data only, like PyYAML's SafeLoader; a duplicate key is an error."""

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
        ConfigError: With the file, and the line where there is one, if it holds no settings.
        FileNotFoundError: If there is no such file.
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
    """`read_config` for `fit`: refuses an empty section, which the parser would ignore, whatever its name."""
    settings = read_config(path)
    for section, content in settings.items():
        if content == {}:
            raise ConfigError(f"config {path}: {section}: is empty; write settings into it, or leave it out")
    return settings


def parsed(path: str, where: str) -> Any:
    """The content of a YAML file."""
    try:
        return yaml.load(Path(path).read_bytes().decode("utf-8-sig"), StrictLoader)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read ({error.strerror}); name a YAML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{where}: is not UTF-8 at its byte {error.start}; name a YAML file") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: is not YAML ({reason(error)}); fix it there") from error
    except (ValueError, RecursionError) as error:  # an impossible date, brackets nested too deep
        raise ConfigError(f"{where}: is not YAML ({error}); fix it") from error


def reason(error: yaml.YAMLError) -> str:
    """The error and its place, in one line."""
    if not isinstance(error, yaml.MarkedYAMLError):
        return " ".join(str(error).split())
    mark = error.problem_mark or error.context_mark
    place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return f"{' '.join(filter(None, (error.context, error.problem)))}{place}"


def num_values(value: Any, known: dict[int, int], inside: tuple[int, ...]) -> int:
    """The number of values of nested lists and mappings, aliases written out; a cycle has too many."""
    if not isinstance(value, dict | list):
        return 1
    if id(value) in inside:
        return MAX_VALUES + 1
    if id(value) not in known:
        parts = value.values() if isinstance(value, dict) else value
        known[id(value)] = 1 + sum(num_values(part, known, (*inside, id(value))) for part in parts)
    return known[id(value)]


def shortened(value: Any) -> str:
    """A value as messages show it."""
    return "null" if value is None else f"{value!r:.60}"


def other_version(path: str) -> str:
    """A clause for a message if the file's first line names another version of grpo_pl; else empty."""
    with Path(path).open("rb") as file:
        first = re.match(rb"# grpo_pl==([\w.+-]{1,40})", file.readline(200))
    version = first[1].decode() if first else __version__
    return "" if version == __version__ else f" (grpo_pl {version} wrote {path}, and this is {__version__})"


def read_ahead(args: list[str]) -> tuple[str, str]:
    """The job of a command line and its config files, which decides what else they may say.

    Also returns a clause for messages that names the files written by another version.
    """
    try:
        options = first_options(args)
        configs = [read_job_config(path) for path in options.config]
    except (argparse.ArgumentError, FileNotFoundError):
        return "policy", ""  # the parser itself will name the mistake
    job = options.job or ([config["job"] for config in configs if "job" in config] or ["policy"])[-1]
    if not isinstance(job, str) or job not in JOBS:
        fail(f"job: expected one of {', '.join(JOBS)}, got {job}{nearest(str(job), JOBS)}")
    return job, "".join(map(other_version, options.config))


def config_files(args: list[str]) -> list[str]:
    """The config files of a command line; none if it cannot be read."""
    try:
        return list(first_options(args).config)
    except argparse.ArgumentError:
        return []


def first_options(args: list[str]) -> argparse.Namespace:
    """The options that decide how the others are read."""
    reader = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    reader.add_argument("-c", "--config", action="append", default=[])
    reader.add_argument("--job")
    return reader.parse_known_args(args)[0]
