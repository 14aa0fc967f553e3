"""Feed random, mutated and cut input to everything that reads from outside, and say what broke.

Each execution makes an input from (seed, number) and runs it; a target raises when what must hold does not: another
error than the one that is meant for bad input, a hang, an answer that depends on where the input was cut, memory that
grows. A finding is made smaller and printed as a Python literal, for FINDINGS of tests/house/test_fuzz.py.

Exit code 1 when there was a finding.
"""

import argparse
import random
import resource
import signal
import sys
import time
import traceback

from fuzz_bus import Bus, Control
from fuzz_config import Configuration
from fuzz_http import Http
from fuzz_inputs import smallest
from fuzz_mail import Mailing

TARGETS = {kind.name: kind for kind in (Bus, Control, Mailing, Configuration, Http)}
HANG_CPU_S = 20  # an input takes milliseconds; of this process's own time, so a busy machine is no hang
SHOWN_MAX_CHARS = 20_000


class Hang(Exception):
    """An input that keeps the processor busy."""


def _give_up(*_):
    raise Hang(f"{HANG_CPU_S} s of processor time for one input")


def attempt(target, value):
    """Run one input; the exception it ends with, or None."""
    before = signal.signal(signal.SIGVTALRM, _give_up)
    signal.setitimer(signal.ITIMER_VIRTUAL, HANG_CPU_S)
    try:
        target.run(value)
    except Exception as error:
        return error
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
    return None


def fuzz(name, seconds, executions, seed):
    """Feed one target; returns (how many executions, how long they took, the finding or None)."""
    began = time.monotonic()
    number = 0
    with TARGETS[name]() as target:
        while number < executions and time.monotonic() < began + seconds:
            value = target.make(random.Random(f"{seed}/{number}"))
            number += 1
            error = attempt(target, value)
            if error is not None:
                if not isinstance(error, Hang):
                    value = smallest(value, lambda less, like=error: type(attempt(target, less)) is type(like))
                    error = attempt(target, value) or error
                return number, time.monotonic() - began, (number - 1, value, error)
    return number, time.monotonic() - began, None


def parsed(arguments):
    parser = argparse.ArgumentParser(prog="scripts/fuzz", description=__doc__.partition("\n")[0])
    parser.add_argument("target", nargs="*", help=f"of {', '.join(TARGETS)} (default: all, one after the other)")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each target (default: 60)")
    parser.add_argument("--executions", type=int, default=1 << 62, help="at most so many of each target")
    parser.add_argument("--seed", type=int, default=None, help="repeat a run (default: another one each time)")
    options = parser.parse_args(arguments)
    if unknown := sorted(set(options.target) - set(TARGETS)):
        parser.error(f"there is no target {unknown[0]!r}; there are {', '.join(TARGETS)}")
    return options


def main(arguments=None):
    options = parsed(arguments)
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(1 << 32)
    findings = 0
    for name in options.target or TARGETS:
        number, took_s, finding = fuzz(name, options.seconds, options.executions, seed)
        peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10
        rate = number / max(took_s, 1e-9)
        print(
            f"{name:<8}{number:>10,} executions in {took_s:.1f} s, {rate:,.0f}/s, peak {peak_mib} MiB, seed {seed}",
            flush=True,
        )
        if finding is not None:
            findings += 1
            index, value, error = finding
            print(f"  FINDING at execution {index} of seed {seed}: {error!r:.500}", flush=True)
            print("".join(traceback.format_exception(error)[-6:]), flush=True)
            print(f'  ("{name}", {value!r:.{SHOWN_MAX_CHARS}}),', flush=True)
    print(f"verdict: {findings} findings" if findings else "verdict: nothing found")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
