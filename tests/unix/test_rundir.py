"""The run directory: one launcher a name, nothing unsafe, older processes gone, found by others while it lives."""

import os
import stat
import time
from pathlib import Path

import pytest
from family import Gate, drop_privileges, wait_for_kill
from ledger_support import in_child, kill, reap, start

from zcluster.errors import SpawnError
from zcluster.unix import process, rundir
from zcluster.unix.ledgerfile import filesystem_of
from zcluster.unix.rundir import SOCKET_PATH_MAX_BYTES, claim, clusters, root_of, safe_name

STATE, OTHER = b"s" * 16, b"o" * 16


pytestmark = pytest.mark.usefixtures("no_descriptor_leaks")


@pytest.fixture
def launch(base):
    """Claim a name in a process of its own, as each launcher does; it keeps it until it is killed."""
    pids = []

    def run(wanted="", default="shop"):
        gate = Gate()

        def body():
            claim(base, wanted, default).publish()
            gate.open()
            wait_for_kill()

        pids.append(start(body))
        gate.wait()
        gate.close()
        return pids[-1]

    yield run
    for pid in pids:
        if process.is_alive(pid, process.start_time(pid)):
            kill(pid)


def names(base):
    return [found.name for found in clusters(base)]


def give_back(run):
    run.remove()
    run.lock.close()


def test_a_claim_is_private_and_leaves_nothing_when_given_back(base):
    """Directories 0700 below <base>/zcluster-<uid>/<name>/, all gone after remove."""
    run = claim(base, "", "shop")
    assert run.name == "shop"
    assert run.path.parent == root_of(base) / "shop" == base / f"zcluster-{os.getuid()}" / "shop"
    for path in (run.path, run.path.parent, root_of(base)):
        assert stat.S_IMODE(path.stat().st_mode) == 0o700
    assert run.older == ()
    run.publish()
    (run.path / "leash").touch()
    give_back(run)
    assert list(base.iterdir()) == []


def test_an_explicit_name_that_is_taken_names_its_launcher(base, launch):
    """SpawnError with the launcher's pid and what to do; the one that runs is untouched."""
    pid = launch("shop")
    with pytest.raises(
        SpawnError, match=rf"named 'shop' is already running \(launcher {pid}\).*zcluster stop --name"
    ):
        claim(base, "shop", "ignored")
    assert [(found.name, found.launcher_pid) for found in clusters(base)] == [("shop", pid)]


def test_a_default_name_that_is_taken_gets_a_number(base, launch):
    """-2, -3; a number that is free again is taken again."""
    first, second = launch(), launch()
    assert names(base) == ["shop", "shop-2"]
    run = claim(base, "", "shop")
    assert run.name == "shop-3"
    give_back(run)
    kill(first)
    run = claim(base, "", "shop")
    assert run.name == "shop"
    assert len(run.older) == 1  # what the killed one left
    give_back(run)
    kill(second)


def test_clusters_finds_the_living_only(base, launch):
    """A killed launcher's files are no proof; neither is a directory without them, nor no directory at all."""
    assert clusters(base) == []
    pid, other = launch("a"), launch("b")
    (found, second) = clusters(base)
    assert (found.name, found.launcher_pid, found.path.parent) == ("a", pid, root_of(base) / "a")
    assert found.path.is_dir()
    assert second.name == "b"
    kill(pid)
    (root_of(base) / "stray").mkdir()
    (root_of(base) / "no-lock").mkdir()
    (root_of(base) / "no-lock" / "current").write_text("x")
    assert names(base) == ["b"]
    kill(other)
    assert clusters(base) == []
    assert clusters(base / "nowhere") == []


def test_a_name_has_one_owner_however_many_try(base):
    """Launchers that start and stop one name all the time: never two at once, no error but "already running"."""
    busy = base / "busy"

    def body():
        taken = 0
        end = time.monotonic() + 20
        while taken < 30:
            assert time.monotonic() < end
            try:
                run = claim(base, "shop", "")
            except SpawnError as error:
                if "already running (launcher" not in str(error):
                    raise
                continue
            busy.mkdir()  # fails when another owner is inside
            run.publish()
            busy.rmdir()
            give_back(run)
            taken += 1

    pids = [start(body) for _ in range(4)]
    assert [reap(pid) for pid in pids] == [0] * 4
    assert list(base.iterdir()) == []


# ---- what is not safe ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("level", ["root", "name"])
def test_a_directory_that_others_may_read_is_refused(base, level):
    """Mode and owner are told, and which directory."""
    path = root_of(base) if level == "root" else root_of(base) / "shop"
    path.mkdir(mode=0o700, parents=True)
    root_of(base).chmod(0o700)
    path.chmod(0o750)
    with pytest.raises(SpawnError, match=rf"{path} is not a private directory.*mode drwxr-x---.*--run-dir"):
        claim(base, "shop", "")


@pytest.mark.parametrize("dangling", [False, True])
def test_a_symlink_is_refused(base, tmp_path, dangling):
    """Somebody else could have put it there; nothing is made behind it."""
    target = tmp_path / "target"
    if not dangling:
        target.mkdir(mode=0o700)
    root_of(base).symlink_to(target)
    with pytest.raises(SpawnError, match=f"{root_of(base)}"):
        claim(base, "shop", "")
    assert dangling or list(target.iterdir()) == []


def test_a_file_in_the_way_is_refused(base):
    """It is not ours to remove."""
    root_of(base).write_text("precious")
    with pytest.raises(SpawnError, match=f"cannot make {root_of(base)}: File exists"):
        claim(base, "shop", "")
    assert root_of(base).read_text() == "precious"


def test_another_users_directory_is_refused(base):
    """Private, but not ours."""

    def body():
        drop_privileges()
        private = (Path("/root"), Path("/lost+found"), Path("/proc/1/fd"), Path("/var/lib/private"))
        for path in private:
            if path.exists() and path.lstat().st_uid != os.getuid() and not path.lstat().st_mode & 0o077:
                with pytest.raises(
                    SpawnError, match=rf"{path} is not a private directory of uid {os.getuid()} .*uid"
                ):
                    rundir._private_directory(path)
                return True
        return False

    assert in_child(body), "this machine has no private directory of another user"


def test_a_place_that_is_not_in_memory_is_refused(tmp_path):
    """The ledger must not wait for a disk: the filesystem's type is told, and what to give."""
    on_disk = next(p for p in (tmp_path, Path.home(), Path("/sys")) if filesystem_of(p) not in ("tmpfs", "ramfs"))
    with pytest.raises(SpawnError, match=rf"{on_disk} .*--run-dir on a tmpfs"):
        claim(on_disk, "shop", "")
    assert not root_of(on_disk).exists()


def test_a_base_that_is_missing_or_read_only_is_refused(base):
    """It says what to give."""
    with pytest.raises(SpawnError, match="is not a writable directory; give one on a tmpfs with --run-dir DIR"):
        claim(base / "missing", "shop", "")

    def body():
        drop_privileges()
        with pytest.raises(SpawnError, match="is not a writable directory"):
            claim(base / "closed", "shop", "")

    (base / "closed").mkdir(mode=0o500)
    in_child(body)  # an ordinary user may not even look into `base`
    base.chmod(0o711)
    in_child(body)


def test_a_path_too_long_for_a_socket_is_refused_before_anything_is_made(base):
    """unix(7) has 107 bytes; the longest name that is accepted really can be bound."""
    import socket

    room = SOCKET_PATH_MAX_BYTES - len(os.fsencode(root_of(base))) - len("//12345678/ctl")
    with pytest.raises(
        SpawnError, match=r"is too long for the path of a socket in it \(108 bytes, the limit is 107\)"
    ):
        claim(base, "n" * (room + 1), "")
    assert list(base.iterdir()) == []
    run = claim(base, "n" * room, "")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(run.path / "ctl"))
    give_back(run)


# ---- what stays, and what it is called -----------------------------------------------------------------------------
def test_remove_can_keep_the_ledger_for_the_next_start(base):
    """Only the ledger stays; the next claim of the name finds its directory among the older ones."""

    def body():
        run = claim(base, "shop", "")
        run.publish()
        for name in ("ledger", "locks", "leash"):
            (run.path / name).touch()
        run.remove(keep_ledger=True)
        run.lock.close()
        assert [path.name for path in run.path.iterdir()] == ["ledger"]
        again = claim(base, "shop", "")
        assert again.older == (run.path,)
        give_back(again)
        assert run.path.exists()

    in_child(body)


def test_the_lock_is_the_launchers_and_ends_with_it(base, launch):
    """A child forked by a launcher does not keep the name."""
    gate = Gate()
    told = Gate()

    def body():
        claim(base, "shop", "")

        def child():
            told.open()
            gate.wait()

        start(child)
        told.wait()

    pid = start(body)
    assert reap(pid) == 0  # its child lives on
    run = claim(base, "shop", "")
    gate.open()
    give_back(run)
    gate.close()
    told.close()


@pytest.mark.parametrize(
    ("app", "name"),
    [
        ("shop:app", "shop"),
        ("shop.web:create_app('x')", "shop.web"),
        ("../etc/passwd:app", "etc-passwd"),
        ("naïve:app", "na-ve"),
        ("...:app", "app"),
        (":app", "app"),
        ("x" * 60, "x" * 40),
    ],
)
def test_a_default_name_is_made_of_the_module(app, name):
    """Only what is safe as one component of a path."""
    assert safe_name(app) == name
