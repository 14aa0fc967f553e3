"""Where `zcluster` and `python -m zcluster` begin.

Invariant: for `run`, a signal that comes at any time from our first line on is kept, not lost and not fatal: it stays
pending in the kernel until the launcher's own handling stands and unblocks it. Hence nothing is imported before.
"""

import signal
import sys

# What the launcher interprets; nobody else does.
KEPT = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGTTIN,
    signal.SIGTTOU,
)


def main() -> int:
    """Run the command line of this process; returns its exit code."""
    if sys.argv[1:2] == ["run"]:
        signal.pthread_sigmask(signal.SIG_BLOCK, KEPT)
    _open_standard_streams()
    from zcluster.cli import main as cli

    return cli(sys.argv[1:])


def _open_standard_streams() -> None:
    """Have 0, 1 and 2 open: a file of ours that got one of these numbers would be written to by every `print`."""
    import os

    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)


if __name__ == "__main__":
    sys.exit(main())
