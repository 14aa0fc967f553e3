"""Flags, variables and files: which one counts, where it came from, and how a wrong one is named."""

import json
import os

import msgspec
import pytest

from zcluster.config import make_config, options
from zcluster.configfile import FILE_MAX_BYTES
from zcluster.errors import ConfigError
from zcluster.resolution import Resolved, Sources, changes, relevant, resolve


@pytest.fixture
def write(tmp_path):
    """Write files into the working directory: `write(zcluster="...", pyproject="...")`."""

    def files(**texts):
        for name, text in texts.items():
            (tmp_path / f"{name}.toml").write_bytes(text if isinstance(text, bytes) else text.encode())

    return files


@pytest.fixture
def resolved(tmp_path):
    """Resolve in the working directory; `environ` and `file` are what they say, all else are flags."""

    def result(environ=None, file="", **flags):
        return resolve(Sources({"app": "a:b", **flags}, dict(environ or {}), str(tmp_path), file))

    return result


def refused(resolved, *given, **named):
    """The text of the error."""
    with pytest.raises(ConfigError) as caught:
        resolved(*given, **named)
    return str(caught.value)


# ---- strength ------------------------------------------------------------------------------------------------------
def test_each_source_is_stronger_than_the_one_before(write, resolved):
    """Default, zcluster.toml, pyproject.toml, the platform's variable, ours, flag; what is hidden is told."""
    seen = [resolved()]
    write(zcluster="# here\nworkers = 2\n")
    seen.append(resolved())
    write(pyproject="[project]\nname = 'x'\n[tool.zcluster]\nworkers = 3\n")
    seen.append(resolved())
    environ = {"WEB_CONCURRENCY": "4"}
    seen.append(resolved(environ))
    environ |= {"ZCLUSTER_WORKERS": "5"}
    seen += [resolved(environ), resolved(environ, workers="6")]
    assert [one.config.workers for one in seen] == [0, 2, 3, 4, 5, 6]
    names = ["zcluster.toml:2", "pyproject.toml:4", "variable WEB_CONCURRENCY", "variable ZCLUSTER_WORKERS", "flag"]
    assert [one.origins["workers"] for one in seen] == ["default", *names]
    assert seen[-1].hidden == {"workers": tuple(reversed(names[:-1]))}
    assert seen[-1].origins["app"] == "flag"
    assert seen[-1].origins["threads"] == "default"


def test_every_option_can_stand_in_a_file_and_in_a_variable(write, resolved):
    """All of them under their one name, and with the type they have."""
    others = {
        "app": "a:b",
        "workers": 3,
        "bind": (":80",),
        "unix_mode": "0660",
        "forwarded_allow_ips": "*",
        "health_path": "/",
        "hooks": "a:B",
    }
    values = {o.field: others.get(o.field) or o.default or (o.least and int(o.least)) or "text" for o in options()}
    values |= {"umask": "027", "env": ("A=1", "B="), "reload": True, "reload_extra_file": ("a", "b")}
    values |= {"capture_output": True, "timeout_s": 7}
    values |= dict.fromkeys(("restart_limit", "max_requests", "max_requests_jitter", "max_rss_mib", "max_age_s"), 7)
    values["drain_delay_s"] = 7
    write(zcluster="\n".join(f"{o.name} = {json.dumps(values[o.field])}" for o in options()))
    from_file = resolved()
    write(zcluster="")
    texts = {o.variable: ",".join(v) if o.multiple else str(v) for o in options() if (v := values[o.field])}
    from_environ = resolved(texts)
    assert from_file.config == from_environ.config == make_config(**values)
    for number, option in enumerate(options(), 1):
        if option.field != "app":
            assert from_file.origins[option.field] == f"zcluster.toml:{number}"
            assert from_environ.origins[option.field] == f"variable {option.variable}"


def test_the_app_may_stand_in_a_file(write, tmp_path):
    """Then nothing else is needed; without it the error says where to name it."""
    bare = Sources({}, {}, str(tmp_path))
    with pytest.raises(
        ConfigError, match=r"^Missing argument 'APP'\..*\(app = \"MODULE:ATTRIBUTE\" in zcluster.toml\)"
    ):
        resolve(bare)
    assert resolve(bare, needs_app=False).config.app == "-"
    write(zcluster='app = "shop:app"')
    assert resolve(bare).config.app == "shop:app"
    assert resolve(bare).origins["app"] == "zcluster.toml:1"


def test_a_named_file_replaces_both(write, resolved, tmp_path):
    """--config FILE, or ZCLUSTER_CONFIG; one called pyproject.toml is read as one."""
    write(zcluster="threads = 1", pyproject="[tool.zcluster]\nthreads = 2", other="\nthreads = 3")
    assert resolved(file="other.toml").origins["threads"] == "other.toml:2"
    assert resolved({"ZCLUSTER_CONFIG": "other.toml"}).config.threads == 3
    assert resolved({"ZCLUSTER_CONFIG": "other.toml"}, file="zcluster.toml").config.threads == 1
    named = str(tmp_path / "pyproject.toml")
    assert resolved(file=named).origins["threads"] == f"{named}:2"


def test_spellings(write, resolved):
    """Keys with _ as Python has them, one address without brackets, preload as a boolean, numbers without a point."""
    write(zcluster="keep_alive = 2\nbind = ':80'\npreload = false\nworkers = 'auto'\nlimit-request-field_size = 99")
    config = resolved().config
    assert (config.keep_alive_s, config.bind, config.preload, config.workers) == (2.0, (":80",), "off", 0)
    assert config.limit_request_field_size == 99
    config = resolved({"ZCLUSTER_BIND": ":80, unix:/a b,", "PORT": "1"}).config
    assert config.bind == (":80", "unix:/a b")
    assert resolved({"PORT": "5000", "ZCLUSTER_RUN_DIR": "/run/z"}).config.bind == (":5000",)
    write(zcluster="tool = { zcluster = 1 }", pyproject="tool = { zcluster = { threads = 4 } }")
    assert resolved(file="pyproject.toml").origins["threads"] == "pyproject.toml:1"


@pytest.mark.parametrize(("flag", "preload"), [(True, "on"), (False, "off"), (None, "auto")])
def test_preload_has_three_states(resolved, flag, preload):
    """--preload, --no-preload, and neither."""
    assert resolved(**({} if flag is None else {"preload": flag})).config.preload == preload


def test_an_empty_variable_is_not_set(write, resolved):
    """Of ours and of the platform's."""
    write(zcluster="workers = 2")
    names = [
        "PORT",
        "WEB_CONCURRENCY",
        "FORWARDED_ALLOW_IPS",
        "ZCLUSTER_WORKERS",
        "ZCLUSTER_CONFIG",
        "ZCLUSTER_OTHER",
    ]
    assert resolved(dict.fromkeys(names, "")) == resolved()


def test_variables_that_only_look_like_ours(resolved):
    """What a worker's children inherit, and what Kubernetes says about a Service called zcluster, set nothing."""
    environ = {
        **dict.fromkeys(["ZCLUSTER_WORKER_ID", "ZCLUSTER_WORKER_PID", "ZCLUSTER_WORKER_SLOT"], "3"),
        **{"ZCLUSTER_SERVICE_HOST": "10.0.0.1", "ZCLUSTER_SERVICE_PORT": "80", "ZCLUSTER_SERVICE_PORT_HTTP": "80"},
        **{"ZCLUSTER_PORT": "tcp://10.0.0.1:80", "ZCLUSTER_WEB_PORT": "tcp://10.0.0.1:80"},
        **{"ZCLUSTER_PORT_80_TCP": "tcp://10.0.0.1:80", "ZCLUSTER_PORT_80_TCP_ADDR": "10.0.0.1"},
    }
    assert resolved(environ) == resolved()


def test_it_can_be_asked_again(write, resolved, tmp_path):
    """Sources and result survive the wire, and tell after a change of the file what is new and what cannot be."""
    write(zcluster="threads = 4")
    sources = Sources({"app": "a:b", "bind": (":80",)}, relevant({"PORT": "1", "HOME": "/"}), str(tmp_path))
    assert sources.environ == {"PORT": "1"}
    kept = msgspec.msgpack.decode(msgspec.msgpack.encode(sources), type=Sources)
    before = resolve(kept)
    assert before == resolve(sources)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(before), type=Resolved) == before
    assert changes(before.config, resolve(kept).config) == []
    write(zcluster="threads = 5\nlanes = 600\ncertfile = 'a'")
    with_tls = resolve(kept).config
    write(zcluster="threads = 5\nlanes = 600\ncertfile = 'b'")
    assert [(one.before, one.after, one.refused) for one in changes(with_tls, resolve(kept).config)] == [
        ("a", "b", "")
    ]
    assert changes(before.config, with_tls)[-1].refused == "TLS is not switched on or off on open sockets"
    write(zcluster="threads = 5\nlanes = 600")
    found = changes(before.config, resolve(kept).config)
    assert [(one.option.name, one.before, one.after) for one in found] == [("lanes", 512, 600), ("threads", 4, 5)]
    assert [one.refused for one in found] == ["the ledger is made once, at the start", ""]


# ---- errors --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("\nworker = 2", "zcluster.toml:2: unknown option 'worker'; did you mean 'workers'?"),
        ("Workers = 2", "zcluster.toml:1: unknown option 'Workers'; did you mean 'workers'?"),
        ("keep-alive-s = 2", "zcluster.toml:1: unknown option 'keep-alive-s'; did you mean 'keep-alive'?"),
        ("zzz = 2", "zcluster.toml:1: unknown option 'zzz'; `zcluster config` prints those that there are"),
        ("a.b = 2", "zcluster.toml:1: unknown table [a]; options stand at the top, without a table"),
        ("\n[zcluster]\nworkers = 2", "zcluster.toml:2: unknown table [zcluster]; options stand at the top, without"),
        ("[[bindd]]", "zcluster.toml:1: unknown table [bindd]; options stand at the top, without a table"),
        ("[bind]\nx = 1", "zcluster.toml:1: bind is {'x': 1}, but should be a string or a list of strings, one"),
        ("keep-alive = 1\nkeep_alive = 2", "zcluster.toml:2: keep_alive was given before, as keep-alive (zcluster."),
        (
            "\n\nthreads = '2'",
            "zcluster.toml:3: threads is '2', but should be a whole number from 1 to 1024, not a s",
        ),
        ("threads = 2.0", "zcluster.toml:1: threads is 2.0, but should be a whole number from 1 to 1024"),
        ("threads = 2000", "zcluster.toml:1: threads is 2000, but should be a whole number from 1 to 1024"),
        (
            "keep_alive = true",
            "zcluster.toml:1: keep_alive is True, but should be a number from 0.01 to 3600, not a bo",
        ),
        ("keep-alive = nan", "zcluster.toml:1: keep-alive is nan, but should be a number from 0.01 to 3600"),
        ("workers = 0", "zcluster.toml:1: workers is 0, but should be a number from 1 on, or 'auto'"),
        (
            "workers = true",
            "zcluster.toml:1: workers is True, but should be a number from 1 on, or 'auto', not a bool",
        ),
        ("workers = '4'", "zcluster.toml:1: workers is '4', but should be a number from 1 on, or 'auto'"),
        ("name = 3", "zcluster.toml:1: name is 3, but should be a string of at most 4096 characters"),
        ("name = 2020-01-01", "zcluster.toml:1: name is datetime.date(2020, 1, 1), but should be a string"),
        ("name = 'a/b'", "zcluster.toml:1: name is 'a/b', but a name is 1 to 40 of"),
        ("log-level = 'wraning'", "zcluster.toml:1: log-level is 'wraning', but should be debug, info, warning, err"),
        ("log-level = 'wraning'", "; did you mean 'warning'?"),
        ("bind = [':80',\n 3]", "zcluster.toml:1: bind is [':80', 3], but should be a string or a list of strings"),
        ("bind = []", "zcluster.toml:1: bind is [], but should be a string or a list of strings, one at least"),
        ("bind = 'nowhere'", "zcluster.toml:1: bind: cannot bind to 'nowhere': it has no port"),
        ("access-logformat = '%(zz)s'", "zcluster.toml:1: access-logformat is '%(zz)s', but it has no atom 'zz'"),
        ("forwarded-allow-ips = 'a b'", "zcluster.toml:1: forwarded-allow-ips is 'a b', but 'a b' does not appear"),
        ("unix-mode = '999'", "zcluster.toml:1: unix-mode is '999', but should be octal"),
        ("\nkeyfile = 'k'", "zcluster.toml:2: keyfile is given without --certfile; give the certificate too"),
        (
            "\nworkers = 300",
            "zcluster.toml:2: 300 workers need 600 lanes (a worker and its replacement hold one each)",
        ),
        (
            "hang-timeout = 6\nheartbeat = 3",
            "zcluster.toml:2: heartbeat is 3 s, but must be below a third of hang-time",
        ),
        ("hang-timeout = 6\nheartbeat = 3", "of hang-timeout (zcluster.toml:1) (2 s), or healthy"),
        (
            "app = 'a:b'\nstate = \"a\\u0000b\"",
            "zcluster.toml:2: state is 'a\\x00b', but should be UTF-8 without NUL",
        ),
        ("\nworkers 2", "zcluster.toml:2: this is not TOML: Expected '=' after a key"),
        ("workers = [\n", "zcluster.toml:1: this is not TOML: "),
        ("a = 1\na = 2", "zcluster.toml:2: this is not TOML: Cannot overwrite a value"),
        (b"a = 1\n# \xff", "zcluster.toml:2: TOML is UTF-8, but this line is not"),
        ("a = " + "[" * 100_000, "zcluster.toml is no configuration file: its brackets are nested too deeply"),
        ("a = " + "1" * 5000, "zcluster.toml: this is not TOML: Exceeds the limit"),
        ("#" * (FILE_MAX_BYTES + 1), "zcluster.toml has more than 1,048,576 bytes; that is no configuration file"),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_what_is_wrong_in_a_file_is_named(write, resolved, text, message):
    """File, line, key, what was expected, and what was probably meant."""
    write(zcluster=text)
    said = refused(resolved)
    assert message in said
    assert said.startswith("zcluster.toml")


def test_the_project_file_is_read_as_carefully(write, resolved):
    """Its table alone is ours; what is broken is refused, because we cannot know what it says about us."""
    write(pyproject="[tool.other]\nworkers = 'x'\n[project]\nzzz = 1")
    assert set(resolved().origins.values()) == {"flag", "default"}
    assert refused(resolved, file="pyproject.toml") == "pyproject.toml has no table [tool.zcluster]"
    for text, message in (
        ("[tool.zcluster]\nworker = 1", "pyproject.toml:2: unknown option 'worker'; did you mean 'workers'?"),
        ("[tool.zcluster.a]\n", "pyproject.toml:1: unknown table [a]; options stand in [tool.zcluster] itself"),
        ("[tool]\nzcluster = 3", "pyproject.toml:2: tool.zcluster is 3, but should be a table of options"),
        ("[tool.zcluster]\nthreads = 0", "pyproject.toml:2: threads is 0, but should be a whole number from 1"),
        ("tool = { zcluster = { threads = 0, bind = [\n':1'] } }", "pyproject.toml: threads is 0, but should be"),
        ("[tool", "pyproject.toml:1: this is not TOML"),
    ):
        write(pyproject=text)
        assert refused(resolved).startswith(message)


def test_files_that_are_not_there(resolved, tmp_path):
    """A named one is missed; a link to nothing, a folder and a Python file are not taken for no file."""
    assert f"there is no configuration file 'a.toml' (working directory: {tmp_path})" == refused(
        resolved, file="a.toml"
    )
    assert "gunicorn.conf.py is a Python file; options stand in TOML here" in refused(
        resolved, file="gunicorn.conf.py"
    )
    assert "names no file" in refused(resolved, file="a\0b")
    (tmp_path / "zcluster.toml").symlink_to("gone")
    assert refused(resolved) == "zcluster.toml is a symbolic link to a file that does not exist"
    (tmp_path / "zcluster.toml").unlink()
    (tmp_path / "zcluster.toml").mkdir()
    assert refused(resolved) == "cannot read zcluster.toml: Is a directory"


def test_a_hidden_value_is_checked_too(write, resolved):
    """It would count on the day the stronger one goes; a rule between options is for those that count."""
    write(zcluster="threads = 0")
    assert refused(resolved, threads=2).startswith("zcluster.toml:1: threads is 0")
    write(zcluster="heartbeat = 20")
    assert resolved(heartbeat_s=1.0).config.heartbeat_s == 1.0


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        (
            {"WEB_CONCURRENCY": "lots"},
            "variable WEB_CONCURRENCY is 'lots', but should be a number from 1 on, or 'auto'",
        ),
        ({"ZCLUSTER_WORKERS": "0"}, "variable ZCLUSTER_WORKERS is '0', but should be a number from 1 on, or 'auto'"),
        ({"PORT": "http"}, "variable PORT: cannot bind to ':http'"),
        (
            {"ZCLUSTER_THREADS": "1_0"},
            "variable ZCLUSTER_THREADS is '1_0', but should be a whole number from 1 to 1024",
        ),
        ({"ZCLUSTER_THREADS": "٣"}, "variable ZCLUSTER_THREADS is '٣', but should be a whole number from 1 to 1024"),
        ({"ZCLUSTER_THREADS": "0"}, "variable ZCLUSTER_THREADS is 0, but should be a whole number from 1 to 1024"),
        (
            {"ZCLUSTER_KEEP_ALIVE": "5s"},
            "variable ZCLUSTER_KEEP_ALIVE is '5s', but should be a number from 0.01 to 3600",
        ),
        ({"ZCLUSTER_KEEP_ALIVE": "nan"}, "variable ZCLUSTER_KEEP_ALIVE is 'nan', but should be a number"),
        (
            {"ZCLUSTER_PRELOAD": "of"},
            "variable ZCLUSTER_PRELOAD is 'of', but should be auto, on, off; did you mean 'off'?",
        ),
        ({"ZCLUSTER_BIND": ","}, "variable ZCLUSTER_BIND is (), but should be a string or a list of strings"),
        ({"ZCLUSTER_STATE": "/\udcff"}, "variable ZCLUSTER_STATE is '/\\udcff', but should be UTF-8"),
        ({"ZCLUSTER_WROKERS": "3"}, "variable ZCLUSTER_WROKERS sets no option; did you mean ZCLUSTER_WORKERS?"),
        (
            {"ZCLUSTER_KEEPALIVE": "3"},
            "variable ZCLUSTER_KEEPALIVE sets no option; did you mean ZCLUSTER_KEEP_ALIVE?",
        ),
        ({"ZCLUSTER_PORT": "80"}, "variable ZCLUSTER_PORT sets no option; did you mean PORT?"),
        ({"ZCLUSTER_QQ": "1"}, "variable ZCLUSTER_QQ sets no option; `zcluster config` prints the options"),
        ({"ZCLUSTER_CONFIG": "no"}, "there is no configuration file 'no'"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_what_is_wrong_in_a_variable_is_named(resolved, environ, message):
    """The variable, its value, and what was probably meant."""
    assert refused(resolved, environ).startswith(message)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"keep_alive_s": -1.0}, "--keep-alive is -1.0, but should be a number from 0.01 to 3600"),
        ({"workers": "0"}, "--workers is '0', but should be a number from 1 on, or 'auto'"),
        ({"workers": "many"}, "--workers is 'many', but should be a number from 1 on, or 'auto'"),
        ({"hang_timeout_s": 1.0}, "--heartbeat is 1 s, but must be below a third of --hang-timeout (0.33"),
        ({"app": ""}, "APP is '', but should be a string of 1 to 4096 characters"),
        ({"workers": "300", "lanes": 10}, "300 workers need 600 lanes"),
        ({"workers": "300", "lanes": 10}, "but --lanes is 10; raise --lanes or lower --workers"),
    ],
)
def test_a_wrong_flag_is_named(resolved, flags, message):
    """The operator reads the flag that was given, not the name of a field."""
    assert message in refused(resolved, **flags)


def test_two_files_at_odds_are_both_named(write, resolved):
    """The first with its line before the text, the other behind its key."""
    write(zcluster="\nlanes = 4", pyproject="[tool.zcluster]\nworkers = 3\n")
    said = refused(resolved)
    assert said.startswith("pyproject.toml:2: 3 workers need 6 lanes ")
    assert said.endswith("but lanes (zcluster.toml:2) is 4; raise lanes (zcluster.toml:2) or lower workers")


def test_the_library_reads_nothing(write, tmp_path, monkeypatch):
    """`make_config`, which is behind `Cluster(...)`, knows neither files nor variables."""
    write(zcluster="threads = 3")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ZCLUSTER_THREADS", "4")
    assert make_config(app="a:b").threads == 8


def test_a_pipe_is_no_configuration_file(tmp_path, resolved):
    """Whoever opened it would wait for a writer, and the launcher must not wait for anybody."""
    os.mkfifo(tmp_path / "zcluster.toml")
    with pytest.raises(ConfigError, match="is a pipe; give a file"):
        resolved()
