"""Whose processes these are: the user and the group for which a launcher gives up root.

Theory of operation. What takes root (low ports, keys that only root may read, a pid file in /run) and what has to be
the user's (run directory, ledger, logs, state) is made in turns: `acting` is the user in all respects but one, its
saved ids are still root's and so it can come back. `drop` is for good, and that is tried out: whoever can come back
has not left. All of it comes before any other process is started, so none of them ever was root.

Invariant: what is made while `acting` is what the user could have made himself.
"""

import grp
import os
import pwd
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from zcluster.config import Config
from zcluster.errors import ConfigError, SpawnError

ID_MAX: Final = 2**32 - 2  # one more is -1, which means "leave it as it is" to setresuid(2)
_STAY: Final = -1


@dataclass(frozen=True)
class Identity:
    """A user to become, by somebody who may."""

    name: str
    uid: int
    gid: int
    groups: tuple[int, ...]  # the supplementary ones
    home: str = ""  # empty: nobody has said

    def __str__(self) -> str:
        return f"{self.name} (uid {self.uid}, gid {self.gid})"

    def become(self, saved_uid: int, saved_gid: int) -> None:
        """Change all ids of this process; raises `SpawnError` where even root may not (a container's limits)."""
        try:
            os.setgroups(self.groups)
            os.setresgid(self.gid, self.gid, saved_gid)
            os.setresuid(self.uid, self.uid, saved_uid)
        except OSError as error:
            raise SpawnError(
                f"cannot become {self}: {error.strerror}; it takes CAP_SETUID and CAP_SETGID, and ids that exist in "
                "this user namespace; or start as that user and leave out --user and --group"
            ) from error


def wanted(config: Config) -> Identity | None:
    """Return whom to become; None when we are who was asked for. Raises `ConfigError` for nobody we know."""
    if not config.user and not config.group:
        return None
    uid, home, name, groups = os.getuid(), "", str(os.getuid()), tuple[int, ...](os.getgroups())
    gid = _group(config.group) if config.group else None
    if config.user:
        entry = _user(config.user)
        if isinstance(entry, int):
            uid, name = entry, config.user
            if gid is None:
                raise ConfigError(
                    f"option 'user' is {name}, whom this machine does not know; give 'group' too", "user"
                )
            groups = (gid,)
        else:
            uid, home, name = entry.pw_uid, entry.pw_dir, entry.pw_name
            gid = entry.pw_gid if gid is None else gid
            groups = tuple(os.getgrouplist(name, gid))
    elif gid is not None:
        groups = (gid,)
    assert gid is not None
    if (uid, gid) == (os.getuid(), os.getgid()):
        return None
    if os.geteuid() != 0:
        field, given = ("user", config.user) if config.user else ("group", config.group)
        raise ConfigError(
            f"option {field!r} is {given!r}, but only root can become somebody else, and this is uid {os.getuid()}; "
            "start as root, or leave it out",
            field,
        )
    return Identity(name, uid, gid, groups, home)


def _user(given: str) -> pwd.struct_passwd | int:
    """Look a user up; only its id when it has no entry, as in containers."""
    try:
        if not given.isdecimal():
            return pwd.getpwnam(given)
        return pwd.getpwuid(_id(given, "user"))
    except KeyError:
        if given.isdecimal():
            return int(given)
        raise ConfigError(
            f"option 'user' is {given!r:.200}, but this machine has no user of that name", "user"
        ) from None


def _group(given: str) -> int:
    try:
        return _id(given, "group") if given.isdecimal() else grp.getgrnam(given).gr_gid
    except KeyError:
        raise ConfigError(
            f"option 'group' is {given!r:.200}, but this machine has no group of that name", "group"
        ) from None


def _id(given: str, field: str) -> int:
    if len(given) > len(str(ID_MAX)) or int(given) > ID_MAX:
        raise ConfigError(f"option {field!r} is {given:.200}, but ids go from 0 to {ID_MAX}", field)
    return int(given)


@contextmanager
def acting(who: Identity | None) -> Iterator[None]:
    """Be this user for a while, None: stay. Only in a process of one thread, and as root.

    An error of ours says as whom it was met: root would have been let in.
    """
    if who is None:
        yield
        return
    groups, gid = os.getgroups(), os.getgid()
    who.become(0, gid)
    try:
        yield
    except (ConfigError, SpawnError) as error:
        fields = error.fields if isinstance(error, ConfigError) else ()
        raise type(error)(f"{error} (as user {who})", *fields) from error
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(gid, gid, gid)
        os.setgroups(groups)


def drop(who: Identity | None, kept: tuple[str, ...] = ()) -> None:
    """Be this user for good, None: stay; in the environment too, but for the variables `kept`.

    Raises `SpawnError` when that cannot be, or could be undone.
    """
    if who is None:
        return
    who.become(who.uid, who.gid)
    if who.uid and (_succeeds(os.setresuid) or (who.gid and _succeeds(os.setresgid))):
        raise SpawnError(
            f"became {who}, but could come back; are there securebits or file capabilities that keep privileges?"
        )
    if who.home:  # else the app looks for its files in the home of root, which it may not even enter
        told = {"HOME": who.home, "USER": who.name, "LOGNAME": who.name}
        os.environ.update({name: value for name, value in told.items() if name not in kept})


def _succeeds(change: Callable[[int, int, int], None]) -> bool:
    """Whether an effective id can be made root's again."""
    try:
        change(_STAY, 0, _STAY)
    except PermissionError:
        return False
    return True


def may(who: Identity, path: str | Path, mode: int) -> bool:
    """Whether this user has the access to a path that root has; `mode` as for access(2)."""
    with acting(who):
        return os.access(path, mode)


def require_programs() -> None:
    """Raise `SpawnError` for what the user we act as would only be missing when everything is started."""
    if not os.access(sys.executable, os.X_OK) or not os.access(__file__, os.R_OK):
        raise SpawnError(
            f"{sys.executable} and the packages it uses must be readable; is that environment in somebody's home?"
        )
    folder = Path.cwd()
    if not os.access(folder, os.R_OK | os.X_OK):
        raise SpawnError(f"the working directory {folder} must be readable; give another one with --chdir")
