"""Who may use the server."""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Iterable


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_host(host: str, api_key: str | None, allow_anonymous: bool) -> None:
    """Refuse to listen where strangers could come, without a key.

    Raises:
        ValueError: it would; or the key is empty or not ASCII.
    """
    if api_key is not None and not (api_key.isascii() and api_key.isprintable() and api_key.strip()):
        raise ValueError("The API key must be printable ASCII, and not empty: choose another one.")
    if api_key is None and not is_loopback(host) and not allow_anonymous:
        raise ValueError(
            f"host={host!r} can be reached from other machines, and there is no API key: set "
            "HF_DIFFUSION_FORCING_API_KEY, listen on localhost, or pass --allow-anonymous if something else guards it."
        )


def has_key(headers: Iterable[tuple[bytes, bytes]], api_key: str) -> bool:
    """Whether the header "Authorization: Bearer ..." has the key; compared in constant time."""
    given = next((value for name, value in headers if name == b"authorization"), b"")
    scheme, _, key = given.partition(b" ")
    return hmac.compare_digest(key.strip(), api_key.encode()) and scheme.lower() == b"bearer"
