"""Becoming somebody else: who, how far, and that there is no way back."""

import os
import pwd

import pytest
from family import NOBODY, drop_privileges
from ledger_support import in_child

from zcluster.config import make_config
from zcluster.errors import ConfigError, SpawnError
from zcluster.unix import identity

IS_ROOT = os.getuid() == 0


def config(**more):
    return make_config(app="shop:app", **more)


def test_nobody_else():
    """Nothing asked, or what we are already: nothing is to be done."""
    assert identity.wanted(config()) is None
    assert identity.wanted(config(user=str(os.getuid()), group=str(os.getgid()))) is None
    assert identity.wanted(config(group=str(os.getgid()))) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"user": "no-such-user"}, r"option 'user' is 'no-such-user', but this machine has no user of that name"),
        ({"group": "no-such-group"}, r"option 'group' is 'no-such-group', but this machine has no group of"),
        ({"user": "4294967295"}, r"option 'user' is 4294967295, but ids go from 0 to 4294967294"),
        ({"user": "1" * 400}, r"option 'user' is 1+, but ids go from 0 to"),
        ({"user": "4000000001"}, r"option 'user' is 4000000001, whom this machine does not know; give 'group' too"),
        ({"user": "²"}, r"this machine has no user of that name"),
    ],
)
def test_who_is_not_there(options, message):
    """The text names the option and what is wrong with it."""
    with pytest.raises(ConfigError, match=message):
        identity.wanted(config(**options))


def test_only_root_becomes_somebody_else():
    """Anybody else is told so, before anything is started."""

    def body():
        drop_privileges()
        for options in ({"user": "root"}, {"group": "root"}, {"user": "1", "group": "1"}):
            with pytest.raises(ConfigError, match=r"but only root can become somebody else, and this is uid \d+"):
                identity.wanted(config(**options))

    in_child(body)


def test_groups_and_home():
    """A user with an entry has its groups and its home; one that is only a number has what was given."""
    if IS_ROOT:
        entry = pwd.getpwnam("nobody")
        who = identity.wanted(config(user="nobody"))
        assert (who.uid, who.gid, who.home) == (entry.pw_uid, entry.pw_gid, entry.pw_dir)
        assert set(who.groups) == set(os.getgrouplist("nobody", entry.pw_gid))
        assert identity.wanted(config(user="nobody", group="7")).gid == 7
        number = identity.wanted(config(user="4000000001", group="7"))
        assert (number.uid, number.gid, number.groups, number.home) == (4000000001, 7, (7,), "")
        only = identity.wanted(config(group="7"))
        assert (only.uid, only.gid, only.groups) == (0, 7, (7,))


def test_acting_and_the_way_back(tmp_path):
    """While acting, permissions are those of the user; afterwards root's again; errors say as whom they were met."""

    def body():
        before = os.getresuid(), os.getresgid(), os.getgroups()
        who = identity.Identity("shop", NOBODY, NOBODY, (NOBODY,))
        with identity.acting(who):
            assert (os.getuid(), os.geteuid(), os.getegid(), os.getgroups()) == (NOBODY, NOBODY, NOBODY, [NOBODY])
            assert not os.access(tmp_path, os.W_OK)
        assert (os.getresuid(), os.getresgid(), os.getgroups()) == before
        said = r"^no \(as user shop \(uid 65534, gid 65534\)\)$"
        with pytest.raises(ConfigError, match=said) as caught, identity.acting(who):
            raise ConfigError("no", "state")
        assert caught.value.fields == ("state",)
        assert (os.getresuid(), os.getresgid(), os.getgroups()) == before

    if IS_ROOT:
        in_child(body)


def test_for_good(monkeypatch):
    """No id, saved ones included, is root's any more; the environment is the user's, but for what was given."""

    def body():
        os.environ.update(HOME="/root", USER="root", LOGNAME="root")
        identity.drop(identity.Identity("shop", NOBODY, NOBODY, (NOBODY,), "/srv/shop"), ("USER",))
        assert os.getresuid() == os.getresgid() == (NOBODY,) * 3
        assert os.getgroups() == [NOBODY]
        for change in (os.setuid, os.seteuid, os.setgid, os.setegid):
            with pytest.raises(PermissionError):
                change(0)
        assert [os.environ[name] for name in ("HOME", "USER", "LOGNAME")] == ["/srv/shop", "root", "shop"]

    if IS_ROOT:
        in_child(body)


def test_a_group_alone():
    """Root stays root, in another group."""

    def body():
        identity.drop(identity.wanted(config(group="7")))
        assert os.getresuid() == (0, 0, 0)
        assert os.getresgid() == (7, 7, 7)
        assert os.getgroups() == [7]

    if IS_ROOT:
        in_child(body)


def test_who_may_not():
    """An ordinary user, or root without its capabilities: the machine's refusal, in words."""

    def body():
        drop_privileges()
        with pytest.raises(
            SpawnError, match=r"cannot become shop \(uid 4, gid 4\): Operation not permitted; it takes"
        ):
            identity.drop(identity.Identity("shop", 4, 4, (4,)))

    in_child(body)
