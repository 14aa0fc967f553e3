"""Which configuration each generation has: the first as it was started with, every later one as it was read again.

Invariant: what a generation was started with stays with it, so another zygote of it is made alike; and what cannot
change without a new start is the same in all of them.

Nothing of the user's runs here: files are read and compared, and what is wrong with them is a `ConfigError`.
"""

import logging

from msgspec.structs import asdict, replace

from zcluster.config import Config, make_config
from zcluster.errors import ConfigError
from zcluster.resolution import Sources, changes, resolve
from zcluster.unix.cpus import available_cpus
from zcluster.unix.logfile import settle

log = logging.getLogger("zcluster.launcher")


FIRST = 1  # the generation that a cluster starts with


class Configurations:
    """Used by the launcher's thread. There are never more than two: of who serves, and of who is introduced."""

    def __init__(self, running: Config, given: Config, sources: Sources | None) -> None:
        """`running` is `given` with every "auto" resolved. Without `sources` nothing is ever read again."""
        self._sources = sources
        self._serving = self._candidate = FIRST
        self._running = self._next_running = running
        self._given = self._next_given = given

    def of(self, generation: int) -> Config:
        """Return a generation's configuration; of one that never was, what the sources say now.

        Raises `ConfigError` when that cannot be.
        """
        if generation == self._serving or self._sources is None:
            return self._running
        if generation != self._candidate:
            try:
                self._next_running, self._next_given = self._read(self._sources)
            except ConfigError as error:
                raise ConfigError(f"the configuration was read again, and cannot be used: {error}") from None
            self._candidate = generation
        return self._next_running

    def commit(self, generation: int) -> Config:
        """This generation serves from now on; returns its configuration."""
        if generation == self._candidate:
            self._running, self._given = self._next_running, self._next_given
        self._serving = generation
        logging.getLogger("zcluster").setLevel(self._running.log_level.upper())  # of this process, the launcher
        return self._running

    def _read(self, sources: Sources) -> tuple[Config, Config]:
        after = resolve(sources).config
        found = changes(self._given, after)
        kept = {change.option.field for change in found if change.refused}
        if "certfile" in kept:
            kept.add("keyfile")  # a key without its certificate is nothing
        for change in found:
            name, before = change.option.name, change.before
            if change.option.field in kept:
                why = change.refused or "it belongs to certfile"
                log.warning("%s stays %r, not %r, until a new start: %s", name, before, change.after, why)
            else:
                log.info("the reload changes %s from %r to %r", name, before, change.after)
        given = make_config(**{**asdict(after), **{field: getattr(self._given, field) for field in kept}})
        taken = {change.option.field: change.after for change in found if change.option.field not in kept}
        if taken.get("workers") == 0:
            taken["workers"] = available_cpus()
        if "access_logfile" in taken:
            taken["access_logfile"] = settle(taken["access_logfile"])
        return replace(self._running, **taken), given
