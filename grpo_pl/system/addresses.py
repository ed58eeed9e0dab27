"""Addresses of HTTP servers."""

from urllib.parse import urlsplit


def is_address(url: str) -> bool:
    """Whether it is `http://HOST` or `https://HOST`, perhaps with a port and a path, without a login."""
    try:
        parts = urlsplit(url)
        port = parts.port  # a ValueError if there can be none such
    except ValueError:
        return False
    extra = parts.username or parts.password or parts.query or parts.fragment
    named = parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0
    return named and not extra and url.split() == [url]
