"""Prints pip's own settings as the environment variables that make uv do the same.

    eval "$(python tools/pip_settings.py)"

uv reads neither pip.conf nor PIP_* variables; a mirror, a proxy or a certificate that is set there is meant
for whatever installs packages. A variable of uv's that is set already stays. Needs Python and pip alone.
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
"""pip's option -> the variable, and what stands between its values."""
ORDER = ("global", "install", ":env:")
"""Sections of pip's settings, the strongest last."""


def settings(listed: str) -> dict[str, str]:
    """The options that `pip config list` names, each with its strongest value."""
    found: dict[str, dict[str, str]] = {section: {} for section in ORDER}
    for line in listed.splitlines():
        key, _, value = line.partition("=")
        section, _, option = key.rpartition(".")
        if section in found:
            found[section][option] = ast.literal_eval(value)
    return {option: value for section in ORDER for option, value in found[section].items()}


def for_uv(options: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that say the same to uv, without those that are set.

    Best match means what pip does: take the best version that any index has.
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
