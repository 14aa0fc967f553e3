"""From flags, variables and files to one `Config`, and for every option where its value comes from.

Order of strength, the weakest first: default, zcluster.toml, [tool.zcluster] of pyproject.toml, a variable of the
platform (PORT, WEB_CONCURRENCY, FORWARDED_ALLOW_IPS), ZCLUSTER_<OPTION>, flag. A value that a stronger one hides is
checked all the same: it would be the one that counts on the day the stronger one goes.

Invariant: `resolve` depends on its `Sources` and on the files they name, on nothing else; so whoever keeps the
`Sources` can ask again later, for a reload, and gets what `zcluster run` would then get.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from zcluster.config import Config, make_config, options
from zcluster.configfile import OWN_FILE, Setting, read_files
from zcluster.errors import ConfigError
from zcluster.option import Option, misfit, nearest

FILE_VARIABLE: Final = "ZCLUSTER_CONFIG"  # names the file, as --config does
NO_APP: Final = "-"  # stands in where a configuration is looked at that has no app yet

# What our workers have in their environment, and so what their children inherit.
_INHERITED: Final = frozenset({"ZCLUSTER_WORKER_ID", "ZCLUSTER_WORKER_PID", "ZCLUSTER_WORKER_SLOT"})
# What Kubernetes tells every pod beside a Service that is called zcluster, or zcluster-something.
_SERVICE: Final = re.compile(
    r"ZCLUSTER_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
)
_SERVICE_URL: Final = re.compile(r"(tcp|udp|sctp)://")  # ..._PORT=tcp://10.0.0.11:6379

_SWITCH: Final = {
    **dict.fromkeys(("1", "true", "yes", "on"), True),
    **dict.fromkeys(("0", "false", "no", "off"), False),
}


class Sources(msgspec.Struct, frozen=True):
    """Everything that a configuration is made from. Can be encoded: a launcher keeps it for the next reload."""

    flags: dict[str, Any]  # by field of `Config`, only those that were given
    environ: dict[str, str]  # all, or what `relevant` leaves
    folder: str  # the working directory
    file: str = ""  # of --config


class Resolved(msgspec.Struct, frozen=True):
    """A configuration, and the origins of its values."""

    config: Config
    origins: dict[str, str]  # by field: `default`, `zcluster.toml:3`, `pyproject.toml:7`, `variable X` or `flag`
    hidden: dict[str, tuple[str, ...]]  # by field: origins of weaker values, the strongest first


class Change(msgspec.Struct, frozen=True):
    """What a reload would change."""

    option: Option
    before: Any
    after: Any
    refused: str  # why it takes a new start; "": it does not


def relevant(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that `resolve` looks at."""
    ours = {option.env for option in options()}
    return {name: value for name, value in environ.items() if name in ours or name.startswith("ZCLUSTER_")}


def resolve(sources: Sources, *, needs_app: bool = True) -> Resolved:
    """Return the configuration that these sources make.

    Without `needs_app` a missing app is no error: it is `NO_APP` then. Raises `ConfigError` in the words of whoever
    gave the value: file and line, variable or flag.
    """
    named = sources.file or sources.environ.get(FILE_VARIABLE, "")
    given: dict[str, list[Setting]] = {}
    for setting in (*read_files(Path(sources.folder), named), *_variables(sources.environ), *_flags(sources.flags)):
        given.setdefault(setting.field, []).append(setting)
    known = {option.field: option for option in options()}
    values = {}
    for field, settings in given.items():
        for setting in settings:
            values[field] = _checked(known[field], setting)
    if "app" not in values:
        if needs_app:
            raise ConfigError(
                "Missing argument 'APP'. Name the application as MODULE:ATTRIBUTE, here or in a file "
                f'(app = "MODULE:ATTRIBUTE" in {named or OWN_FILE})'
            )
        values["app"] = NO_APP
    winners = {field: settings[-1] for field, settings in given.items()}
    try:
        config = make_config(**values)
    except ConfigError as error:
        raise _in_words(error, winners) from None
    return Resolved(
        config,
        {field: winners[field].origin if field in winners else "default" for field in known},
        {field: tuple(one.origin for one in reversed(found[:-1])) for field, found in given.items() if found[1:]},
    )


def changes(before: Config, after: Config) -> list[Change]:
    """Return the options whose values differ, in the order of declaration."""
    found = []
    for option in options():
        old, new = getattr(before, option.field), getattr(after, option.field)
        if old != new:
            is_switched = option.field == "certfile" and "" in (old, new)
            refused = "TLS is not switched on or off on open sockets" if is_switched else option.fixed
            found.append(Change(option, old, new, refused))
    return found


# ---- who gives values ----------------------------------------------------------------------------------------------
def _flags(flags: Mapping[str, Any]) -> Iterator[Setting]:
    for option in options():
        if option.field in flags:
            yield Setting(option.field, flags[option.field], _called(option), "flag")


def _variables(environ: Mapping[str, str]) -> Iterator[Setting]:
    """Yield what the environment sets, ours after the platform's. An empty variable is one that is not set."""
    ours = {FILE_VARIABLE}
    for option in options():
        ours.add(option.variable)
        for name in filter(None, (option.env, option.variable)):
            text = environ.get(name, "")
            if text:
                value = f":{text}" if name == "PORT" else _converted(option, text, f"variable {name}")
                yield Setting(option.field, value, f"variable {name}", f"variable {name}")
    for name in sorted(environ):
        if name.startswith("ZCLUSTER_") and environ[name] and name not in ours and not _is_foreign(name, environ):
            raise ConfigError(f"variable {name} sets no option; {_meant(name.removeprefix('ZCLUSTER_'), ours)}")


def _meant(rest: str, ours: Iterable[str]) -> str:
    if rest in (option.env for option in options()):
        return f"did you mean {rest}?"
    near = nearest(rest, [name.removeprefix("ZCLUSTER_").lower() for name in ours])
    return f"did you mean ZCLUSTER_{near.upper()}?" if near else "`zcluster config` prints the options"


def _is_foreign(name: str, environ: Mapping[str, str]) -> bool:
    """Tell whether a variable that begins like ours is somebody else's, or meant for somebody else."""
    is_url = name.endswith("_PORT") and _SERVICE_URL.match(environ[name])
    return name in _INHERITED or bool(is_url or _SERVICE.fullmatch(name))


def _converted(option: Option, text: str, called: str) -> Any:
    """Return the value that a variable's text means; several values are parted by commas."""
    if option.multiple:
        return tuple(filter(None, (part.strip() for part in text.split(","))))
    if option.type is str or "auto" in option.metavar:
        return text
    is_switch = option.type is bool
    if is_switch and text.strip().lower() in _SWITCH:
        return _SWITCH[text.strip().lower()]
    form = r"[-+]?\d{1,18}" if option.type is int else r"[-+]?\d{1,18}(\.\d{0,18})?"
    if is_switch or not re.fullmatch(form, text.strip(), re.ASCII):
        error = misfit(option, text, is_text=True)
        raise _in_words(error, {option.field: Setting(option.field, text, called, called)})
    return option.type(text)


# ---- what they may give --------------------------------------------------------------------------------------------
def _checked(option: Option, setting: Setting) -> Any:
    """Return the value as `make_config` takes it; refuses what is wrong by itself."""
    value = setting.value
    if option.field == "workers" and value != "auto":  # 0 is how 'auto' is stored, not how it is given
        is_number = type(value) is int or (isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value))
        if not is_number or int(value) < 1 or (setting.in_file and type(value) is not int):
            error = misfit(option, value, is_text=not setting.in_file)
            raise _in_words(error, {option.field: setting})
        value = int(value)
    if option.field == "preload" and isinstance(value, bool):
        value = "on" if value else "off"
    try:
        make_config(**{"app": NO_APP, option.field: value})
    except ConfigError as error:
        if error.fields == (option.field,):  # rules between options are for what the whole will be
            raise _in_words(error, {option.field: setting}) from None
    return value


def _called(option: Option) -> str:
    return option.flags[0] if option.flags else option.metavar


def _in_words(error: ConfigError, settings: Mapping[str, Setting]) -> ConfigError:
    """Name options as they were given: "option 'keep_alive_s'" becomes "--keep-alive", or file, line and key."""
    text = str(error)
    known = {option.field: option for option in options()}
    in_files = [settings[field] for field in error.fields if field in settings and settings[field].in_file]
    is_named = False
    for field in error.fields:
        setting = settings.get(field)
        called = setting.called if setting else _called(known[field])
        if setting and setting.in_file and setting.origin != in_files[0].origin:
            called += f" ({setting.origin})"
        named = text.replace(f"option {field!r}", called).replace(repr(field), called)
        is_named |= named != text
        text = named
    if in_files:
        first = in_files[0]
        return ConfigError(f"{first.origin}: {text}" if is_named else f"{first.origin}: {first.called}: {text}")
    variable = next((s for f in error.fields if (s := settings.get(f)) and s.origin.startswith("variable")), None)
    return ConfigError(f"{variable.called}: {text}" if variable and not is_named else text)
