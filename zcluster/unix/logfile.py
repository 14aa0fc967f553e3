"""A log's file, looked at when the cluster starts: a wrong path is the operator's to hear of, at once and only once.

Invariant: what is returned means the same file in every process, wherever the application has gone meanwhile.
"""

import errno
import os
from pathlib import Path
from typing import Final

from zcluster.errors import ConfigError

STREAMS: Final = ("", "-", "/dev/stdout", "/dev/stderr")  # no log at all, or one that is open already


def settle(target: str, option: str = "access_logfile") -> str:
    """Return the absolute path of a log that can be appended to, made if need be; streams as they are.

    Raises `ConfigError` naming the option, the path and the reason.
    """
    if target in STREAMS:
        return target
    path = Path(target).absolute()
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        os.close(os.open(path, flags, 0o666))  # what the umask leaves, as every program that makes a file
    except OSError as error:
        if error.errno != errno.ENXIO:  # a named pipe that nobody reads yet
            stream = "stderr" if option == "log_file" else "stdout"
            raise ConfigError(
                f"option {option!r} is {target!r}, but {path} cannot be written: {error.strerror}; give a file in a "
                f"folder that exists and may be written to, or '-' for {stream}"
            ) from None
    return str(path)
