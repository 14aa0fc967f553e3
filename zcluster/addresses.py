"""Where to listen: the forms of an address, parsed.

Invariant: pure. Whether a host exists or a path is free is for whoever binds.
"""

import ipaddress
import re
from typing import Final, Literal

import msgspec

from zcluster.errors import ConfigError

MAX_UNIX_PATH_BYTES: Final = 107  # sun_path of unix(7) is 108 bytes with its closing NUL
ADDRESS_FORMS: Final = "HOST:PORT, :PORT, [IPV6]:PORT, unix:PATH or fd://N"

_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,251}[A-Za-z0-9.])?")  # RFC 1123 and what resolvers take beside it
_DIGITS = re.compile(r"[0-9]{1,10}")  # int() would also take "+80", " 80", "8_0" and other scripts' digits


class Address(msgspec.Struct, frozen=True):
    """Where to listen: TCP host and port, a Unix socket's path, or a descriptor that was passed in."""

    kind: Literal["tcp", "unix", "fd"]
    host: str = ""  # without brackets; a colon in it means IPv6
    port: int = 0
    path: str = ""
    fd: int = -1


def parse_address(text: str) -> Address:
    """Return the address that `text` means; raises `ConfigError` naming the text and the accepted forms."""
    if text.startswith("unix:"):
        path = text.removeprefix("unix:")
        size = len(path.encode(errors="replace"))
        if not path or "\0" in path or size > MAX_UNIX_PATH_BYTES:
            raise _bad_address(text, f"a path has 1 to {MAX_UNIX_PATH_BYTES} bytes, this one {size}")
        return Address("unix", path=path)
    if text.startswith("fd://"):
        number = text.removeprefix("fd://")
        if not _DIGITS.fullmatch(number) or int(number) > 0x7FFFFFFF:
            raise _bad_address(text, f"{number!r} is no file descriptor")
        return Address("fd", fd=int(number))
    host, colon, port = text.rpartition(":")
    if not colon:
        raise _bad_address(text, "it has no port")
    if not _DIGITS.fullmatch(port) or int(port) > 65535:
        raise _bad_address(text, f"{port!r} is no port from 0 to 65535")
    if host.startswith("[") and host.endswith("]"):
        try:
            return Address("tcp", host=str(ipaddress.IPv6Address(host[1:-1])), port=int(port))
        except ValueError as error:
            raise _bad_address(text, str(error)) from None
    if ":" in host:
        raise _bad_address(text, "an IPv6 address stands in brackets")
    if host and not _HOST.fullmatch(host):
        raise _bad_address(text, f"{host!r} is no host name or address")
    return Address("tcp", host=host or "0.0.0.0", port=int(port))


def _bad_address(text: str, reason: str) -> ConfigError:
    return ConfigError(f"cannot bind to {text!r:.200}: {reason}; accepted forms are {ADDRESS_FORMS}")
