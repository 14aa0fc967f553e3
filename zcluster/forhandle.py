"""A launcher for a program that holds a handle: in a process of its own, and with errors told instead of printed.

Invariant: whatever comes of the start, the program at the other end of the socket is told, or sees its end.
"""

import os

import msgspec

from zcluster.bodies import launcher
from zcluster.config import Config
from zcluster.core import messages as m
from zcluster.errors import ClusterError
from zcluster.unix.channel import Channel, boot_of


def main(control_fd: int, owner_fd: int) -> int:
    """A launcher of its own process, started by a handle: its first message is a Boot with the configuration."""
    channel = Channel.of_fd(control_fd)
    boot = boot_of(channel.first_message(), "launcher")
    return serve_handle(boot, channel, owner_fd)


def serve_handle(boot: m.Boot, handle: Channel, owner_fd: int, zygote_main: launcher.ZygoteMain | None = None) -> int:
    """`run` for the process at the other end of `handle`; errors are told to it, not printed."""
    os.set_inheritable(owner_fd, False)
    config = msgspec.msgpack.decode(boot.config, type=Config)
    try:
        return launcher.run(
            config, announce=False, owner_fd=owner_fd, handle=handle, zygote_main=zygote_main, size=boot.size
        )
    except ClusterError as error:
        handle.send(m.Failed(error.exit_code, str(error)))
        return error.exit_code
    finally:
        handle.close()
