"""What no single option shows: rules between options, and texts that have a form of their own.

Invariant: every error names in `ConfigError.fields` the options it is about, so that whoever knows where their values
come from can say so.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from zcluster.accessformat import parse_format
from zcluster.addresses import Address, parse_address
from zcluster.errors import ConfigError
from zcluster.trustedpeers import parse_trusted_peers

if TYPE_CHECKING:
    from zcluster.config import Config

MAX_NAME_CHARS: Final = 40  # /dev/shm/zcluster-<uid>/<name>/<instance>/ctl has to fit into the 107 bytes of unix(7)

_NAME = re.compile(r"[A-Za-z0-9._-]+")
_PATH = re.compile(r"/[!-\"$-~]*")
_HOOKS = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")
_MODE = re.compile(r"0?o?[0-7]{3}")
_UMASK = re.compile(r"0?o?[0-7]{1,3}")


@contextmanager
def _about(field: str) -> Iterator[None]:
    """Add to what a parser has to say which option it is about."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(str(error), field) from None


def check(config: "Config") -> None:
    """Check what no single option shows; raises `ConfigError` naming the options at odds."""
    for field in config.__struct_fields__:
        value = getattr(config, field)
        for text in (value,) if isinstance(value, str) else value if isinstance(value, tuple) else ():
            if "\0" in text or not _is_utf8(text):  # it travels to the other processes as UTF-8
                raise ConfigError(
                    f"option {field!r} is {text!r:.200}, but should be UTF-8 without NUL characters", field
                )
    if config.name and (
        not _NAME.fullmatch(config.name) or len(config.name) > MAX_NAME_CHARS or config.name.strip(".") == ""
    ):
        raise ConfigError(
            f"option 'name' is {config.name!r:.200}, but a name is 1 to {MAX_NAME_CHARS} of A-Z a-z 0-9 . _ - "
            "and not only dots, because it becomes a directory and part of socket paths",
            "name",
        )
    seen: set[Address] = set()
    for text in config.bind:
        with _about("bind"):
            address = parse_address(text)
        if address in seen and not (address.kind == "tcp" and address.port == 0):
            raise ConfigError(f"option 'bind' names {text!r} twice; give each address once", "bind")
        seen.add(address)
    with _about("access_logformat"):
        parse_format(config.access_logformat)
    with _about("forwarded_allow_ips"):
        parse_trusted_peers(config.forwarded_allow_ips)
    if config.unix_mode and not _MODE.fullmatch(config.unix_mode):
        raise ConfigError(
            f"option 'unix_mode' is {config.unix_mode!r:.200}, but should be octal, such as 0660", "unix_mode"
        )
    _check_health_path(config.health_path)
    _check_surroundings(config)
    if config.hooks and not _HOOKS.fullmatch(config.hooks):
        raise ConfigError(f"option 'hooks' is {config.hooks!r:.200}, but should be MODULE:CLASS", "hooks")
    if config.keyfile and not config.certfile:
        raise ConfigError(
            "option 'keyfile' is given without 'certfile'; give the certificate too", "keyfile", "certfile"
        )
    if 2 * config.workers > config.lanes:
        raise ConfigError(
            f"{config.workers} workers need {2 * config.workers} lanes (a worker and its replacement hold one each), "
            f"but option 'lanes' is {config.lanes}; raise 'lanes' or lower 'workers'",
            "workers",
            "lanes",
        )
    third_s = config.hang_timeout_s / 3
    for field, share, other, limit_s in (
        ("heartbeat_s", "a third", "hang_timeout_s", third_s),  # else a worker in good health is suspect
        ("ledger_tick_s", "a third", "hang_timeout_s", third_s),  # else its tick is never fresh
        ("ledger_tick_s", "a quarter", "master_timeout_s", config.master_timeout_s / 4),  # three may be late
    ):
        if getattr(config, field) >= limit_s:
            raise ConfigError(
                f"option {field!r} is {getattr(config, field):g} s, but must be below {share} of {other!r} "
                f"({limit_s:g} s), or healthy processes would be taken for hung; lower the one or raise the other",
                field,
                other,
            )


def _check_health_path(path: str) -> None:
    if path and not _PATH.fullmatch(path):
        raise ConfigError(
            f"option 'health_path' is {path!r:.200}, but should be as it stands in a request: "
            "a '/' and printable ASCII without blanks or '#', such as /health?deep=1",
            "health_path",
        )


def _check_surroundings(config: "Config") -> None:
    if config.umask and (not _UMASK.fullmatch(config.umask) or int(config.umask.replace("o", ""), 8) & 0o700):
        raise ConfigError(
            f"option 'umask' is {config.umask!r:.200}, but should be octal and leave the owner all permissions, "
            "such as 027",
            "umask",
        )
    for text in config.env:
        name, equals, _ = text.partition("=")
        if not name or not equals:
            raise ConfigError(f"option 'env' is {text!r:.200}, but should be NAME=VALUE", "env")
    if config.reload_extra_file and not config.reload:
        raise ConfigError("option 'reload_extra_file' is given without 'reload'", "reload_extra_file", "reload")


def _is_utf8(text: str) -> bool:
    """Tell whether the text can be encoded; what the command line could not decode contains lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
