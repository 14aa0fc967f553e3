"""What all processes of a cluster find around them: working directory, umask, variables, a place for large bodies.

Invariant: it is arranged once, by the launcher, before anything is opened or started; the others inherit it.
"""

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

from zcluster.config import Config
from zcluster.errors import ConfigError


def enter(config: Config, *, in_memory: bool = False) -> None:
    """Arrange what the options say; paths in other options are relative to --chdir from here on.

    `in_memory`: the app is no file. Raises `ConfigError` naming the option.
    """
    if config.chdir:
        try:
            os.chdir(config.chdir)
        except OSError as error:
            raise ConfigError(
                f"option 'chdir' is {config.chdir!r:.200}, but that cannot be entered: {error.strerror}", "chdir"
            ) from None
        if (here := str(Path.cwd())) not in sys.path[:1]:
            sys.path.insert(0, here)
    if config.umask:
        os.umask(int(config.umask.replace("o", ""), 8))
    for text in config.env:
        name, _, value = text.partition("=")
        os.environb[name.encode()] = value.encode()  # whatever the locale can or cannot encode
    if config.reload:
        _require_watcher(config, in_memory=in_memory)


def given_variables(config: Config) -> tuple[str, ...]:
    """The names of what `enter` has set."""
    return tuple(text.partition("=")[0] for text in config.env)


def _require_watcher(config: Config, *, in_memory: bool) -> None:
    """Raise `ConfigError` when --reload cannot be."""
    if in_memory:
        raise ConfigError(
            "option 'reload' is given, but the app lives in the memory of this program, so there are no files to "
            "watch; move it into a module and name it as MODULE:ATTRIBUTE",
            "reload",
        )
    if importlib.util.find_spec("watchfiles") is None:
        raise ConfigError(
            "option 'reload' is given, but who watches the files is not installed: pip install 'zcluster[reload]'",
            "reload",
        )
    for path in config.reload_extra_file:
        if not Path(path).exists():
            raise ConfigError(
                f"option 'reload_extra_file' is {path!r:.200}, but there is no such file", "reload_extra_file"
            )


def have_temporary_files(folder: Path) -> None:
    """Have a place for what does not fit into memory: `folder` (the run directory) where all others are read-only.

    For this process and those it forks, the app included.
    """
    try:
        tempfile.gettempdir()
    except FileNotFoundError:  # a container with a read-only root, and nothing mounted on /tmp
        place = folder / "tmp"
        place.mkdir(0o700, exist_ok=True)
        tempfile.tempdir = str(place)
