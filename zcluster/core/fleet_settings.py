"""What a fleet has to know of the configuration.

Invariant: every field that has the name of an option has its value; the others are no options.
"""

from typing import Self

from msgspec import Struct

from zcluster.config import Config


class FleetSettings(Struct, frozen=True, kw_only=True):
    """Periods in seconds; all of them are options, so that tests run at a tenth."""

    workers: int
    boot_timeout_s: float = 60.0  # from the request to fork until READY; an import on a cold disk takes long
    graceful_timeout_s: float = 30.0  # drain deadline of a graceful stop, as gunicorn's
    quick_timeout_s: float = 1.0  # drain deadline of a quick stop
    hang_timeout_s: float = 30.0  # silence until HUNG; SUSPECT at a third of it
    dump_grace_s: float = 0.5  # between the stack dump and SIGKILL
    restart_limit: int = 0  # so many crashes are repaired in the life of this master, one more ends it; 0: no limit
    max_requests: int = 0  # a worker that has answered so many is replaced, start-first; 0: none is
    max_requests_jitter: int = 0  # up to so many more, by chance
    max_rss_mib: int = 0  # one that is larger is replaced; 0: none is
    max_age_s: float = 0.0  # one that is older is; 0: none is
    orphan_timeout_s: float = 3.0  # drain deadline when the launcher is gone: nothing may be alive 5 s after it
    lanes: int = 512  # columns of the ledger
    restart_base_s: float = 0.1  # first pause after a crash while starting, doubled each time
    restart_cap_s: float = 30.0  # longest pause
    early_crash_s: float = 5.0  # a crash from READY that soon after the start counts towards a crash loop
    crash_loop_limit: int = 10  # more early crashes than this within the window below are a crash loop
    crash_loop_window_s: float = 60.0
    healthy_after_s: float = 60.0  # this long READY, and the slot's crashes are forgotten

    @classmethod
    def of(cls, config: Config) -> Self:
        """The options that are the fleet's business; the rest keeps its defaults."""
        shared = set(cls.__struct_fields__).intersection(Config.__struct_fields__)
        return cls(**{name: getattr(config, name) for name in shared})
