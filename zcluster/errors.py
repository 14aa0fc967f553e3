"""Errors by whose fault they are; the class decides the exit code.

```
ClusterError             base; also raised for misuse of the API by the caller
|- ConfigError           the operator: an option, a file, a name              exit 2
|- AppError              the application: not found, raises at import, ...    exit 3
|- SpawnError            the machine: port in use, no tmpfs, no memory        exit 4
|- RestartLimitReached   workers died too often                               exit 5
|- ReloadFailed          the new code was not taken; the old one serves        exit 1
`- BusError              a peer or the link to it
   |- BadFrame           a frame that is not one of our messages: counted and dropped, never fatal
   |- PeerGone           whom a message was for is not there (any more)
   |- NoReply            no reply came in time; also a TimeoutError
   |- RequestFailed      the function that should have replied raised
   |- Refusal            the master did not do what it was asked
   |- TooLarge           a message larger than the bus carries; also a ValueError
   `- QueueFull          (core.outbox) more is waiting to be sent than may
```
Anything else that escapes is our own bug and ends with exit 70 (EX_SOFTWARE of sysexits.h).
A text says what was wrong, where, and what to do about it.
"""

from typing import ClassVar


class ClusterError(Exception):
    """Base of everything zcluster raises on purpose."""

    exit_code: ClassVar[int] = 70


class ConfigError(ClusterError):
    """The operator asked for something that cannot be.

    `fields` are the options of `Config` it is about, if any. Where the text names one, it does so as 'field', in
    quotes: whoever knows where its value comes from can say that instead.
    """

    exit_code = 2

    def __init__(self, text: str, *fields: str) -> None:
        super().__init__(text)
        self.fields = fields


class AppError(ClusterError):
    """The application cannot be loaded or is not a WSGI callable."""

    exit_code = 3


class SpawnError(ClusterError):
    """The machine refused: address in use, no writable tmpfs, no processes left."""

    exit_code = 4


class RestartLimitReached(ClusterError):
    """Workers died more often than ``--restart-limit`` allows."""

    exit_code = 5


class BusError(ClusterError):
    """A peer, or the link to it, misbehaved."""


class BadFrame(BusError):
    """A frame that cannot be decoded into one of our messages."""


class ReloadFailed(ClusterError):
    """The new generation could not be imported, or did not become ready; the one before goes on serving."""

    exit_code = 1


class PeerGone(BusError):
    """Whom a message was for has ended, or never was."""


class NoReply(BusError, TimeoutError):
    """No reply came in time; the request may have been acted upon all the same."""


class RequestFailed(BusError):
    """The function that should have replied raised; the text is its exception's."""


class Refusal(BusError):
    """The master answered with an error; `reason` is its text."""

    def __init__(self, verb: str, reason: str) -> None:
        super().__init__(f"the master refused {verb!r}: {reason}")
        self.reason = reason


class TooLarge(BusError, ValueError):
    """A message larger than the bus carries."""


def kind_of(exit_code: int) -> type[ClusterError] | None:
    """Return the error that a process which ended with this code stands for, None when it is no error of a start."""
    kinds: tuple[type[ClusterError], ...] = (ConfigError, AppError, SpawnError, RestartLimitReached)
    return next((kind for kind in kinds if kind.exit_code == exit_code), None)
