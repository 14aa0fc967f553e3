"""Other surroundings for a cluster: a PID namespace, a read-only root, an interpreter that everybody may run.

As root, or where the kernel lets users have namespaces. Where neither is allowed (a container without CAP_SYS_ADMIN)
`CONTAINED` is empty, and what it would have surrounded runs without it: the same assertions hold but for those that
`is_contained` guards.
"""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
# A fresh tmpfs of docker's default size on /dev/shm, everything else read-only, and no home.
_READ_ONLY = """
set -e
mount --make-rprivate /
mount -t tmpfs -o size=64m none /dev/shm
awk '{print $5}' /proc/self/mountinfo | while read -r place; do
    case $place in /dev/shm|/proc*|/sys*) ;; *) mount -o remount,bind,ro "$place" 2>/dev/null || true ;; esac
done
unset HOME
exec "$@"
"""
# A directory that only root may enter ($1) becomes one that everybody may, with nothing in it but $2.
_OPENED = """
set -e
closed=$1 kept=$2 place=$(mktemp -d /dev/shm/zcm-XXXXXX)
shift 2
mount --bind "$closed" "$place"
mount -t tmpfs -o mode=755 none "$closed"
mkdir -p "$closed/$kept"
mount --bind "$place/$kept" "$closed/$kept"
umount "$place"
rmdir "$place"
exec "$@"
"""


def _works(*words):
    return subprocess.run([*words, "true"], capture_output=True).returncode == 0


_PID = ("unshare", *(() if os.getuid() == 0 else ("--map-root-user",)), "--pid", "--fork", "--mount-proc")
is_contained = _works(*_PID, "sh", "-c", _READ_ONLY, "sh")
CONTAINED = (*_PID, "sh", "-c", _READ_ONLY, "sh") if is_contained else ()


def opened():
    """A prefix under which every user may run our interpreter; None when that cannot be had here."""
    prefix = []
    for place in (Path(sys.base_prefix).resolve(), ROOT, Path(sys.prefix).resolve()):
        closed = next((one for one in reversed(place.parents) if not one.stat().st_mode & 0o001), None)
        if closed is not None:
            prefix += ["sh", "-c", _OPENED, "sh", str(closed), str(place.relative_to(closed))]
    if not prefix:
        return ()
    return ("unshare", "--mount", *prefix) if _works("unshare", "--mount", *prefix) else None
