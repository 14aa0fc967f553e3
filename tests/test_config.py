"""Options and addresses: what is accepted, what is refused, and in which words."""

import string

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcluster.addresses import Address, parse_address
from zcluster.config import Config, make_config, options
from zcluster.errors import ConfigError


def test_defaults_are_consistent():
    """The app alone is a complete configuration."""
    config = make_config(app="app:app")
    assert config.bind == ("127.0.0.1:8000",)
    assert config.workers == 0
    assert config.preload == "auto"


def test_a_config_survives_the_wire():
    """What a launcher encodes into a Boot message is what every body decodes."""
    config = make_config(app="app:app", bind=["[::]:0", "unix:/run/a"], heartbeat_s=0.1, name="a-b")
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(config), type=Config) == config


def test_convenient_spellings():
    """One address may be a plain string, workers may be 'auto', whole seconds may be ints."""
    config = make_config(app="a:b", bind=":80", workers="auto", keep_alive_s=2)
    assert (config.bind, config.workers, config.keep_alive_s) == ((":80",), 0, 2.0)
    assert isinstance(config.keep_alive_s, float)


def test_tests_can_run_at_a_tenth():
    """All periods can be scaled down together."""
    tenth = {option.field: option.default / 10 for option in options() if option.type is float}
    assert make_config(app="a:b", **tenth).hang_timeout_s == 3.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "missing required field `app`.*give at least the application"),
        ({"app": ""}, r"option 'app' is ''"),
        ({"app": "a\0b"}, "option 'app' .* without NUL"),
        ({"app": "a:b", "worker": 2}, "unknown option 'worker'; did you mean 'workers'"),
        ({"app": "a:b", "zzz": 2}, "unknown option 'zzz'; known are app, bind"),
        ({"app": "a:b", "workers": -1}, "option 'workers' is -1, but should be a number from 1 on, or 'auto'$"),
        ({"app": "a:b", "workers": True}, "option 'workers' is True, .* not a boolean$"),
        ({"app": "a:b", "workers": 300}, "300 workers need 600 lanes .* 'lanes' is 512; raise 'lanes' or lower"),
        ({"app": "a:b", "keep_alive_s": float("nan")}, "option 'keep_alive_s' is nan"),
        ({"app": "a:b", "keep_alive_s": float("inf")}, "option 'keep_alive_s' is inf"),
        (
            {"app": "a:b", "keep_alive_s": "5"},
            "option 'keep_alive_s' is '5', .* a number from 0.01 to 3600, not a string$",
        ),
        ({"app": "a:b", "backlog": 0}, "option 'backlog' is 0, but should be a whole number from 1 to 65535$"),
        ({"app": "a:b", "preload": "maybe"}, "option 'preload' is 'maybe', but should be auto, on, off"),
        ({"app": "a:b", "log_level": "loud"}, "option 'log_level' .* debug, info, warning, error, critical"),
        ({"app": "a:b", "bind": ()}, r"option 'bind' is \(\)"),
        ({"app": "a:b", "bind": (":80", 3)}, "option 'bind' .* should be a string or a list of strings"),
        ({"app": "a:b", "bind": (":80", "0.0.0.0:80")}, "'0.0.0.0:80' twice"),
        ({"app": "a:b", "name": "a/b"}, "option 'name' is 'a/b'"),
        ({"app": "a:b", "name": ".."}, "option 'name' .* not only dots"),
        ({"app": "a:b", "name": "x" * 41}, "option 'name' .* 1 to 40"),
        *(
            ({"app": "a:b", "health_path": p}, "option 'health_path' .* a '/' and")
            for p in ("up", "/a b", "/#", "/é")
        ),
        ({"app": "a:b", "state": "/\udcff"}, "option 'state' .* UTF-8"),
        ({"app": "a:b", "heartbeat_s": 10}, "'heartbeat_s' is 10 s, but must be below a third of 'hang_timeout_s'"),
        ({"app": "a:b", "hang_timeout_s": 0.6}, "'heartbeat_s' is 1 s, .* lower the one or raise the other"),
        ({"app": "a:b", "master_timeout_s": 1}, "'ledger_tick_s' is 0.25 s, .* a quarter of 'master_timeout_s'"),
    ],
)
def test_nonsense_is_refused_by_name(values, message):
    """A wrong option raises ConfigError, whose text names it, its value and what it should be."""
    with pytest.raises(ConfigError, match=message):
        make_config(**values)


def test_two_free_ports_are_no_duplicate():
    """Port 0 may be given twice: each means another port."""
    assert make_config(app="a:b", bind=("127.0.0.1:0", "127.0.0.1:0")).bind == ("127.0.0.1:0", "127.0.0.1:0")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8000", Address("tcp", host="127.0.0.1", port=8000)),
        ("localhost:0", Address("tcp", host="localhost", port=0)),
        (":80", Address("tcp", host="0.0.0.0", port=80)),
        ("[::]:65535", Address("tcp", host="::", port=65535)),
        ("[0:0::1]:1", Address("tcp", host="::1", port=1)),
        ("[fe80::1%eth0]:1", Address("tcp", host="fe80::1%eth0", port=1)),
        ("unix:/run/a b.sock", Address("unix", path="/run/a b.sock")),
        ("unix:relative", Address("unix", path="relative")),
        ("unix:" + "x" * 107, Address("unix", path="x" * 107)),
        ("fd://3", Address("fd", fd=3)),
    ],
)
def test_accepted_addresses(text, address):
    """Every form of the contract, at its edges."""
    assert parse_address(text) == address


@pytest.mark.parametrize(
    "text",
    [
        *("", "8000", "localhost", "localhost:", "localhost:http", "localhost:65536", "localhost:-1", "a:+80"),
        *("a:8_0", "a: 80", "a:٨٠", "::1:80", "[::1]", "[::1", "[]:80", "[127.0.0.1]:80", "a b:80", "http://a:80"),
        *(
            "unix:",
            "unix:" + "x" * 108,
            "unix:" + "é" * 54,
            "unix:a\0b",
            "fd://",
            "fd://-1",
            "fd://x",
            "fd://4294967296",
        ),
        *("-a:80", "a" * 300 + ":80", "user@host:80", "/a:80"),
    ],
)
def test_refused_addresses(text):
    """What is no address is named, together with the forms that are."""
    with pytest.raises(ConfigError, match="accepted forms are HOST:PORT, :PORT") as caught:
        parse_address(text)
    assert repr(text)[:200] in str(caught.value)


@given(st.text(alphabet=string.printable + "é[]:/.0", max_size=120))
def test_any_text_is_an_address_or_a_config_error(text):
    """Nothing else ever leaves the parser, and what it accepts is in range."""
    try:
        address = parse_address(text)
    except ConfigError:
        return
    assert 0 <= address.port <= 65535
    assert {"tcp": bool(address.host), "unix": bool(address.path), "fd": address.fd >= 0}[address.kind]


VALUES = st.none() | st.integers() | st.text(string.printable, max_size=20)


@given(st.dictionaries(st.sampled_from([*Config.__struct_fields__, "other"]), VALUES))
def test_any_values_are_a_config_or_a_config_error(values):
    """No value of any type gets past the checks as another kind of exception."""
    try:
        config = make_config(**values)
    except ConfigError:
        return
    assert config.app == values["app"]
