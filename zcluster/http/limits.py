"""Every bound of the HTTP engine in one place.

Invariant: whatever a client sends or does not send, it makes the engine hold no more than these numbers say, for no
longer than they say. Zero means "none at all", never "unlimited".
"""

from dataclasses import dataclass
from typing import Final, Self

from zcluster.config import Config

# Descriptors that connections must leave free: the worker's own and libzmq's are some 30 (new ones are opened before
# the old are closed when a master is replaced), the rest is for what the app opens in a request.
FDS_SPARE: Final = 128


@dataclass(frozen=True)
class Limits:
    """Bounds of one engine; sizes in bytes, times in seconds. The defaults are argued beside each."""

    request_line_bytes: int = 8190  # Apache's and gunicorn's; longer: 414
    header_field_bytes: int = 8190  # one field, name to value; Apache's and gunicorn's; longer: 431
    header_count: int = 100  # Apache's and gunicorn's; more: 431
    head_bytes: int = 65536  # request line and all fields; nginx's four buffers of 8 KiB, twice; longer: 431
    body_bytes: int = 1 << 30  # more than any form upload, less than a small disk; longer: 413
    # Of one body, collected before the application runs; 10,000 connections are then at most 2.5 GiB. A longer one is
    # streamed, or collected in an unnamed file when too many threads wait for clients already.
    body_memory_bytes: int = 1 << 18
    # Of one response that is made piece by piece and that its client has not taken yet; more than this and the
    # application waits, or the rest goes to an unnamed file when too many threads wait already.
    response_memory_bytes: int = 1 << 20
    response_file_bytes: int = 1 << 30  # above it the application waits for the client, as an endless generator must
    keep_alive_s: float = 5.0  # idle after a response; nginx's 75 s would pin a draining worker
    header_timeout_s: float = 10.0  # the whole head, from its first byte (or from accept): the end of a slowloris
    body_timeout_s: float = 30.0  # for each `progress_bytes` of a request body
    write_timeout_s: float = 30.0  # for each `progress_bytes` the client takes of a response
    progress_bytes: int = 1024  # 1 KiB per 30 s is slower than any modem, yet more than one byte at a time
    linger_s: float = 2.0  # after a refusal: reading on, so that a reset does not overtake our answer (RFC 9112, 9.6)
    pipelined: int = 16  # requests of one connection answered in a row before the others get their turn
    connections: int = 10_000  # open at once; more wait in the kernel's queue, where another worker finds them
    drain_accepts: int = (
        4096  # taken from the queue when leaving a listener: the largest backlog (net.core.somaxconn)
    )
    accept_pause_s: float = (
        0.1  # after EMFILE and its like: long enough not to spin, too short for a client to notice
    )
    # A worker fuller than another one leaves a new connection to that one so long, then takes it all the same.
    defer_s: float = 0.001

    @classmethod
    def of(cls, config: Config, open_files: int) -> Self:
        """What is configured; fewer connections than were asked for where descriptors (`open_files`) are few."""
        return cls(
            request_line_bytes=config.limit_request_line,
            header_field_bytes=config.limit_request_field_size,
            header_count=config.limit_request_fields,
            body_bytes=config.limit_request_body,
            keep_alive_s=config.keep_alive_s,
            header_timeout_s=config.header_timeout_s,
            body_timeout_s=config.body_timeout_s,
            write_timeout_s=config.write_timeout_s,
            connections=min(config.worker_connections, max(open_files - FDS_SPARE, open_files // 4)),
        )
