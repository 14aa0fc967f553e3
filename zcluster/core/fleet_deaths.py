"""What a worker's death was: the reason handles are told, the words for the log, and whose account it goes on.

Invariant: `verdict` looks at nothing but the worker and its wait status, and changes nothing.
"""

from enum import Enum
from typing import Final

from msgspec import Struct

from zcluster.core.fleet_events import BOOT_FAILED_CODE
from zcluster.core.fleet_wear import TIMEOUT
from zcluster.core.fleet_worker import DRAINING, Worker

# signal(7); the numbers are the same on every Linux we run on (x86, ARM, RISC-V, POWER, s390).
SIGNAL_NAMES: Final = {
    1: "SIGHUP", 2: "SIGINT", 3: "SIGQUIT", 4: "SIGILL", 5: "SIGTRAP", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE",
    9: "SIGKILL", 10: "SIGUSR1", 11: "SIGSEGV", 12: "SIGUSR2", 13: "SIGPIPE", 14: "SIGALRM", 15: "SIGTERM",
    16: "SIGSTKFLT", 17: "SIGCHLD", 18: "SIGCONT", 19: "SIGSTOP", 20: "SIGTSTP", 21: "SIGTTIN", 22: "SIGTTOU",
    23: "SIGURG", 24: "SIGXCPU", 25: "SIGXFSZ", 26: "SIGVTALRM", 27: "SIGPROF", 28: "SIGWINCH", 29: "SIGIO",
    30: "SIGPWR", 31: "SIGSYS",
}  # fmt: skip
SIGKILL, SIGTERM = 9, 15

HUNG, BOOT_TIMEOUT, DRAIN_TIMEOUT = "hung", "boot timeout", "drain timeout"
VOLUNTARY, BOOT_FAILED, LANE_TAKEN, RELOAD = "voluntary", "boot failed", "lane taken", "reload"


class Account(Enum):
    """What a death counts as."""

    LEFT = "left"  # as it should
    CRASH = "crash"  # it had been READY
    FAILED_START = "failed start"
    LANE_TAKEN = "lane taken"


class Death(Struct, frozen=True):
    """The verdict."""

    account: Account
    reason: str
    text: str  # what follows "Worker PID died. "


def status_text(code: int | None, signal: int | None) -> str:
    """A wait status in words."""
    if signal is not None:
        return f"signal {SIGNAL_NAMES.get(signal, signal)}"
    return "exit status unknown" if code is None else f"exit code {code}"


def verdict(worker: Worker, code: int | None, signal: int | None) -> Death:
    """Judge the death of a worker by the state it died in."""
    status = status_text(code, signal)
    if worker.doomed and (signal == SIGKILL or (code is None and signal is None)):
        return _killed_by_us(worker, status)
    if worker.state == DRAINING:
        return _drained(worker, code, signal, status)
    if worker.ready_at is not None:
        return Death(Account.CRASH, _plain_reason(code, signal), status)
    if worker.lane_taken:
        return Death(Account.LANE_TAKEN, LANE_TAKEN, f"{status} (lane {worker.lane} is taken)")
    reason = BOOT_FAILED if code == BOOT_FAILED_CODE else _plain_reason(code, signal)
    return Death(Account.FAILED_START, reason, f"{status} while starting")


def _killed_by_us(worker: Worker, status: str) -> Death:
    text = f"{status} ({worker.doomed})"
    if worker.doomed in (DRAIN_TIMEOUT, TIMEOUT):  # in a drain, when it had its replacement or needed none
        return Death(Account.LEFT, worker.doomed, text)
    account = Account.FAILED_START if worker.ready_at is None else Account.CRASH
    return Death(account, worker.doomed, text)


def _drained(worker: Worker, code: int | None, signal: int | None, status: str) -> Death:
    if signal is not None and not (worker.stopped and signal == SIGTERM):
        return Death(Account.LEFT, _plain_reason(code, signal), f"{status} while draining")
    if worker.leaving:
        text = f"left voluntarily ({worker.leaving})"
    else:
        text = "stopped while starting" if worker.stopped else "left as it was told"
        text += f" ({worker.replaced})" if worker.replaced else ""
    reason = worker.replaced if worker.replaced and not worker.leaving else VOLUNTARY
    return Death(Account.LEFT, reason, text if code in (0, None) else f"{text}, {status}")


def _plain_reason(code: int | None, signal: int | None) -> str:
    if signal is not None:
        return f"killed by signal {SIGNAL_NAMES.get(signal, signal)}"
    return "exit status unknown" if code is None else f"exited code {code}"
