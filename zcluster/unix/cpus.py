"""How many CPUs this process may really use: what `--workers auto` means.

Invariant: never more than the affinity mask allows or the tightest CPU quota on the way from our cgroup to the root
pays for, and never less than one. `os.cpu_count()` knows neither and starts 64 workers in a container that was given
two CPUs.

A quota that is no whole number is rounded up: a worker uses at most one CPU at a time, so the ceiling is the smallest
number of workers that can use up what is paid for (1.5 CPUs: one worker would leave a third of it unused). The JVM
and Go's runtime round the same way.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")


def available_cpus(cgroups: Path = CGROUPS, membership: Path = MEMBERSHIP) -> int:
    """Return min(affinity, ceiling of the cgroup's quota), at least 1. The arguments are for tests."""
    affinity = len(os.sched_getaffinity(0))
    quota = min(quotas(cgroups, membership), default=math.inf)
    return max(1, min(affinity, math.ceil(quota) if quota < affinity else affinity))


def quotas(cgroups: Path, membership: Path) -> Iterator[float]:
    """Yield every CPU quota that applies to us, in CPUs, for cgroup v2 and v1; see cgroups(7).

    A file that is missing or says something we do not know is no quota: a container sees its own subtree only, at
    another path than `membership` says, hence every ancestor is tried up to the root.
    """
    for line in _read(membership).splitlines():
        hierarchy, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if hierarchy == "0" and not controllers:
            for mount in (cgroups, cgroups / "unified"):  # the latter where v1 and v2 live side by side
                for folder in _upwards(mount, path):
                    yield from _v2(_read(folder / "cpu.max"))
        elif "cpu" in controllers.split(","):
            for mount in {cgroups / controllers, cgroups / "cpu"}:
                for folder in _upwards(mount, path):
                    yield from _v1(_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))


def _upwards(mount: Path, path: str) -> Iterator[Path]:
    """Yield the folder of a cgroup and of its ancestors, up to and with the mount point."""
    inside = PurePosixPath(path)
    if ".." not in inside.parts:  # "/..": our cgroup lies outside of this namespace; only the mount is ours to see
        for folder in (inside, *inside.parents):
            if folder != PurePosixPath("/"):
                yield mount / folder.relative_to("/")
    yield mount


def _v2(text: str) -> Iterator[float]:
    """Read `cpu.max`: "max 100000" or "150000 100000"."""
    match text.split():
        case [quota, period] if quota.isdecimal() and period.isdecimal() and int(period) > 0:
            yield int(quota) / int(period)


def _v1(quota: str, period: str) -> Iterator[float]:
    """Read `cpu.cfs_quota_us`, -1 for none, and `cpu.cfs_period_us`."""
    quota, period = quota.strip(), period.strip()
    if quota.isdecimal() and period.isdecimal() and int(period) > 0:
        yield int(quota) / int(period)


def _read(path: Path) -> str:
    """Return the text of a file of the kernel; "" when it is not there or not for us to read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
