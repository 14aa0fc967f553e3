"""`zcluster logs`: what the processes of a running cluster have said, from its journal.

Invariant: nobody is asked: it works while the master is dead, hangs or is stopped, and costs the cluster nothing.
"""

import os
import select
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import click

from zcluster.errors import SpawnError
from zcluster.launched import Launched
from zcluster.parameters import SETTINGS, printing, which_to_read
from zcluster.unix.journal import Reader, told_by

FOLLOW_S: Final = 0.1  # how late a line may be seen; a look costs two system calls
TAIL_LINES: Final = 10  # before those that are to come, as tail(1) has it
INTERRUPTED: Final = 130


@click.command("logs", context_settings=SETTINGS)
@which_to_read
@click.option("--follow", "-f", is_flag=True, help="Go on with what comes, until the cluster has ended.")
@click.option(
    "--lines",
    "-n",
    type=click.IntRange(0),
    metavar="N",
    help=f"The last N lines; default: all that are kept, {TAIL_LINES} with -f.",
)
@click.option("--worker", type=click.IntRange(0), metavar="SLOT", help="Only what the workers of this slot say.")
def logs_command(name: str, run_dir: str, follow: bool, lines: int | None, worker: int | None) -> int:
    """Show the log of a running cluster, wherever else it goes (--log-file). The last 4 MiB are kept."""
    cluster = Launched.find(name, Path(run_dir) if run_dir else None)
    try:
        reader = Reader(Path(cluster.run_dir))
    except FileNotFoundError:
        raise SpawnError(f"the cluster {Path(cluster.run_dir).parent.name} has just ended") from None
    choose = told_by(worker)
    last = lines if lines is not None else TAIL_LINES if follow else None
    try:
        _show(deque(filter(choose, reader.lines()), last))
        if follow:
            for batch in _following(cluster, reader):
                _show(filter(choose, batch))
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:  # `| head` has seen enough; the interpreter's last flush must not fail too
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), sys.stdout.fileno())
    return 0


def _following(cluster: Launched, reader: Reader) -> Iterator[Iterable[str]]:
    """What comes, until the launcher has ended (it is the last to say something), or nobody reads us any more."""
    poller = select.poll()
    poller.register(cluster.fd, select.POLLIN)
    poller.register(sys.stdout.fileno(), 0)  # errors only: the reader of a pipe is gone
    is_over = False
    while not is_over:
        is_over = bool(poller.poll(FOLLOW_S * 1000))
        yield reader.lines()


def _show(lines: Iterable[str]) -> None:
    # As a file of whatever encoding takes it: what an app has printed need not fit the operator's terminal.
    text = "".join(f"{line}\n" for line in lines)
    with printing():
        sys.stdout.buffer.write(text.encode(sys.stdout.encoding or "utf-8", errors="backslashreplace"))
        sys.stdout.buffer.flush()
