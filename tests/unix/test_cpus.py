"""`--workers auto`: affinity and the quotas of cgroup v1 and v2."""

import os

import pytest

from zcluster.unix.cpus import available_cpus, quotas


@pytest.fixture
def machine(tmp_path):
    """A cgroup file system and a membership file made of a dictionary of files; a value is the file's text."""

    def make(membership, files):
        for name, text in files.items():
            path = tmp_path / "cgroup" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        (tmp_path / "membership").write_text(membership)
        return tmp_path / "cgroup", tmp_path / "membership"

    return make


@pytest.mark.parametrize(
    ("membership", "files", "found"),
    [
        ("0::/\n", {"cpu.max": "150000 100000\n"}, [1.5]),
        ("0::/\n", {"cpu.max": "max 100000\n"}, []),
        (
            "0::/a/b\n",
            {"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000", "cpu.max": "400000 100000"},
            [0.5, 4],
        ),
        ("0::/not/mounted/here\n", {"cpu.max": "200000 100000"}, [2]),
        ("0::/../outside\n", {"cpu.max": "200000 100000"}, [2]),
        ("0::/\n1:cpu:/\n", {"unified/cpu.max": "100000 100000"}, [1]),
        (
            "3:cpu,cpuacct:/x\n",
            {"cpu,cpuacct/x/cpu.cfs_quota_us": "250000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"},
            [2.5],
        ),
        ("3:cpu,cpuacct:/x\n", {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "50000"}, [2]),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, []),
        ("1:cpu:/\n", {"cpu/cpu.cfs_quota_us": "5", "cpu/cpu.cfs_period_us": "0"}, []),
        ("0::/\n", {"cpu.max": "garbage\n"}, []),
        ("nonsense without colons\n\n", {"cpu.max": "100000 100000"}, []),
        ("4:memory:/\n", {"memory/cpu.max": "100000 100000"}, []),
    ],
)
def test_every_quota_on_the_way_to_the_root_is_seen(machine, membership, files, found):
    """Both versions, nested groups, containers that see another path than their own, and files that say nothing."""
    assert sorted(quotas(*machine(membership, files))) == found


@pytest.mark.parametrize(("quota", "cpus"), [("10000", 1), ("100000", 1), ("100001", 2), ("99900000", 10**6)])
def test_a_quota_is_rounded_up_and_never_below_one(machine, quota, cpus):
    """One worker uses one CPU at most, so the ceiling is what can use up the quota; affinity bounds it."""
    place = machine("0::/\n", {"cpu.max": f"{quota} 100000\n"})
    assert available_cpus(*place) == min(cpus, len(os.sched_getaffinity(0)))


def test_affinity_alone_counts_where_there_are_no_cgroups(tmp_path):
    """No cgroup file at all is no error."""
    assert available_cpus(tmp_path / "none", tmp_path / "none") == len(os.sched_getaffinity(0))


def test_this_machine_has_an_answer():
    """On the real files the answer lies between one and the affinity."""
    assert 1 <= available_cpus() <= len(os.sched_getaffinity(0))


def test_a_narrower_affinity_is_honoured(tmp_path):
    """A process pinned to one CPU starts one worker."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        assert available_cpus(tmp_path / "none", tmp_path / "none") == 1
    finally:
        os.sched_setaffinity(0, before)
