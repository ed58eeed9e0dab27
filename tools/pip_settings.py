"""Prints pip's own settings as the environment variables that make uv do the same.

    eval "$(python tools/pip_settings.py)"

uv reads neither pip.conf nor PIP_* variables, but a mirror, a proxy or a certificate set there is meant for
every installer of packages. A variable of uv's that is set already stays. Needs nothing but Python and pip.
"""

import ast
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping

SAME_FOR_UV = {
    "index-url": ("UV_DEFAULT_INDEX", " "),
    "extra-index-url": ("UV_INDEX", " "),
    "find-links": ("UV_FIND_LINKS", ","),
    "no-index": ("UV_NO_INDEX", " "),
    "trusted-host": ("UV_INSECURE_HOST", " "),
    "constraint": ("UV_CONSTRAINT", " "),
    "proxy": ("ALL_PROXY", " "),
    "cert": ("SSL_CERT_FILE", " "),
    "client-cert": ("SSL_CLIENT_CERT", " "),
    "default-timeout": ("UV_HTTP_TIMEOUT", " "),
    "timeout": ("UV_HTTP_TIMEOUT", " "),
}
"""pip's option -> the variable, and the separator of its values."""
ORDER = ("global", "install", ":env:")
"""Sections of pip's settings, the strongest last."""


def settings(listed: str) -> dict[str, str]:
    """The options listed by `pip config list`, each with its strongest value."""
    sections: dict[str, dict[str, str]] = {section: {} for section in ORDER}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        section, _, option = key.rpartition(".")
        if section in sections:
            sections[section][option] = ast.literal_eval(value)
    return {option: value for section in ORDER for option, value in sections[section].items()}


def for_uv(options: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """The equivalent variables of uv, without those that are set.

    `unsafe-best-match` is pip's behaviour: take the best version that any index has.
    """
    wanted = {"UV_INDEX_STRATEGY": "unsafe-best-match"}
    for option, (variable, between) in SAME_FOR_UV.items():
        if options.get(option):
            wanted[variable] = between.join(options[option].split())
    return {name: value for name, value in wanted.items() if name not in environment}


def main() -> None:
    """Print an `export` for each variable."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    for name, value in for_uv(settings(listed), os.environ).items():
        print(f"export {name}={shlex.quote(value)}")


if __name__ == "__main__":
    main()
