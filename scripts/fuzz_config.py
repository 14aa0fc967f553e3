"""Files, variables and flags: a configuration, or a ConfigError in words.

And of a configuration that was accepted: what is computed from it can be, it survives the trip to other processes,
and what `zcluster config` prints is TOML that says the same.
"""

import contextlib
import io
import math
import shutil
import tempfile
import tomllib
from pathlib import Path

import click
import msgspec
from fuzz_inputs import mutated, plain, small

from zcluster.accessformat import parse_format
from zcluster.addresses import parse_address
from zcluster.config import Config, make_config, options
from zcluster.configfile import OWN_FILE, PROJECT_FILE
from zcluster.core.fleet_settings import FleetSettings
from zcluster.errors import ConfigError
from zcluster.http import Limits
from zcluster.parameters import SETTINGS, run_parameters
from zcluster.preview import _line, _value
from zcluster.resolution import Sources, changes, relevant, resolve
from zcluster.trustedpeers import parse_trusted_peers

OPTIONS = tuple(options())
TEXTS = (
    *(
        "",
        "x",
        "0",
        "1",
        "-1",
        "true",
        "no",
        "auto",
        "off",
        "4",
        "1.5",
        "nan",
        "inf",
        "1e999",
        "9" * 400,
        "\u0661",
        "\x7f",
    ),
    *(
        "127.0.0.1:0",
        ":80",
        "[::]:1",
        "[::1",
        "unix:/x",
        "unix:",
        "fd://3",
        "fd://",
        "h:65536",
        "a b",
        "*",
        "10.0.0.0/8",
    ),
    *("m:a", "m:f()", "m", ":", "%(h)s %(r)s", "%(", "%({x}i)s", "027", "0o7", "888", "A=B", "=", "\0", "\udcff"),
    *("\U0001f600", "\u2028", "a\nb", "'''", '"', "\\", "x" * 5000, "/", "..", "tcp://10.0.0.1:80"),
)
SAMPLE = b"""# all kinds
app = "m:a"
workers = 2
bind = ["127.0.0.1:0", ':80']
keep-alive = 5.5
"log-level" = 'info'
access-logformat = '''%(h)s'''
env = [
  "A=B", # of the app
  "C=D",
]
preload = true
"""
PROJECT = (
    b"[tool.zcluster]\n" + SAMPLE + b"[tool.other]\nx = {a.b = 1, c = [{}]}\n[[a.b]]\nd = 1979-05-27T07:32:00Z\n"
)
TOKENS = (
    *(
        b"=",
        b"\n",
        b"\r\n",
        b"\r",
        b"[",
        b"]",
        b"[[",
        b"]]",
        b"{",
        b"}",
        b",",
        b".",
        b"#",
        b'"',
        b"'",
        b'"""',
        b"'''",
    ),
    *(
        b"\\",
        b"\\u0000",
        b"\\U0001F600",
        b"\0",
        b"\xff",
        b"\xef\xbb\xbf",
        b"0x",
        b"1_0",
        b"9" * 5000,
        b"nan",
        b"-inf",
    ),
    *(b"1979-05-27", b"[tool.zcluster]", b"[tool]\nzcluster = 3\n", b"tool.zcluster.workers = 2\n", b"a.b.c = 1\n"),
    *(b"[" * 500, b"{a=" * 500, b"\nworkers = 'auto'\n", b"\nbind = []\n", b"\nbind = [1]\n", b"true", b"\t", b" "),
)
VARIABLES = (
    "ZCLUSTER_X",
    "ZCLUSTER_",
    "ZCLUSTER_PORT",
    "ZCLUSTER_SERVICE_HOST",
    "ZCLUSTER_WORKER_ID",
    "ZCLUSTER_CONFIG",
)


def _toml(value):
    """A value as TOML writes it; of what has no such form, something that is refused."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, str):
        return msgspec.json.encode(value.encode(errors="ignore").decode()).decode()
    return str(value).lower()


class Configuration:
    """What an operator may give."""

    name = "config"

    def __enter__(self):
        self.folder = Path(tempfile.mkdtemp(prefix="zc-fuzz-", dir="/dev/shm"))
        self.command = click.Command("run", params=run_parameters(), context_settings=SETTINGS)
        self.usual = make_config(app="m:a")
        return self

    def __exit__(self, *_):
        shutil.rmtree(self.folder)

    def make(self, random):
        """(content of zcluster.toml or None, of pyproject.toml or None, variables, words of the command line)."""
        return [
            *(self._file(random, sample) for sample in (SAMPLE, PROJECT)),
            self._variables(random),
            self._words(random),
        ]

    def _file(self, random, sample):
        if random.random() < 0.4:
            return None
        if random.random() < 0.4:
            head = "[tool.zcluster]\n" if sample is PROJECT else ""
            chosen = random.sample(OPTIONS, random.randrange(1, 6))
            lines = [f"{option.name} = {_toml(self._value(random, option))}" for option in chosen]
            sample = (head + "\n".join(lines) + "\n").encode()
        return mutated(random, sample, TOKENS, (SAMPLE, PROJECT)) if random.random() < 0.7 else sample

    def _value(self, random, option):
        if option.choices and random.random() < 0.6:
            return random.choice(option.choices)
        if option.least is not None and random.random() < 0.5:
            return random.choice((option.least, option.most, option.least + 1, -1))
        if option.multiple and random.random() < 0.5:
            return [random.choice(TEXTS) for _ in range(random.randrange(3))]
        return random.choice((random.choice(TEXTS), small(random), plain(random)))

    def _variables(self, random):
        environ = {}
        for option in random.sample(OPTIONS, random.choice((0, 0, 1, 2, 3))):
            name = option.env or option.variable if random.random() < 0.3 else option.variable
            environ[name] = self._text(random, option)
        if random.random() < 0.1:
            environ[random.choice(VARIABLES)] = random.choice(TEXTS)
        return environ

    def _text(self, random, option):
        value = self._value(random, option)
        return value if isinstance(value, str) else str(value)

    def _words(self, random):
        words = [] if random.random() < 0.1 else ["m:a"]
        for option in random.sample(OPTIONS, random.choice((0, 0, 1, 2, 4))):
            if option.flags:
                flag = random.choice(option.flags)
                words += [flag] if option.type is bool or len(flag) > 20 else [flag, self._text(random, option)]
            elif random.random() < 0.3:
                words.append(random.choice(TEXTS))
        return words

    def run(self, value):
        own, project, environ, words = value
        for name, content in ((OWN_FILE, own), (PROJECT_FILE, project)):
            path = self.folder / name
            if content is None:
                path.unlink(missing_ok=True)
            else:
                path.write_bytes(content)
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # --help is among the words now and then
                context = self.command.make_context("run", list(words))
        except click.exceptions.Exit:
            return
        except click.ClickException as error:
            self._told(error.format_message(), is_quoted=True)  # click quotes a word as it is
            return
        flags = {name: value for name, value in context.params.items() if value not in (None, ())}
        sources = Sources(flags, relevant(environ), str(self.folder), flags.pop("file", ""))
        try:
            resolved = resolve(sources, needs_app=False)
        except ConfigError as error:
            self._told(str(error))
            return
        self._accepted(sources, resolved)

    def _told(self, text, *, is_quoted=False):
        """An operator is told in one line what is wrong."""
        assert text
        assert "\n" not in text or is_quoted, f"an error of several lines: {text}"

    def _accepted(self, sources, resolved):
        config = resolved.config
        assert config == make_config(**{name: getattr(config, name) for name in Config.__struct_fields__})
        assert config == msgspec.msgpack.decode(msgspec.msgpack.encode(config), type=Config)
        assert resolve(sources, needs_app=False) == resolved  # as at a reload
        for address in config.bind:
            parse_address(address)
        parse_trusted_peers(config.forwarded_allow_ips)
        parse_format(config.access_logformat)
        FleetSettings.of(config)
        Limits.of(config, 1024)
        changes(self.usual, config)
        changes(config, self.usual)
        text = "\n".join(_line(option, resolved) for option in OPTIONS)
        again = tomllib.loads(text)
        for option in OPTIONS:
            shown = _value(option, config)
            if shown is not None and not (isinstance(shown, float) and math.isnan(shown)):
                assert again[option.name] == (list(shown) if isinstance(shown, tuple) else shown), option.name
