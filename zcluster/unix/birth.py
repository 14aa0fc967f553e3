"""What a newborn worker gets from its zygote."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from zcluster.config import Config
from zcluster.core.messages import Boot, WorkerInfo
from zcluster.unix.locks import LockFile

if TYPE_CHECKING:  # a worker without TLS does not pay for it
    from ssl import SSLContext


@dataclass(frozen=True)
class Birth:
    """Everything is inherited by the fork; the worker owns it from here on."""

    boot: Boot
    config: Config
    worker: WorkerInfo
    app: Callable[..., Any] | None  # None: import it yourself
    locks: LockFile  # the descriptor is shared with the zygote, its locks are not
    launcher_fd: int  # pidfd
    tls: "SSLContext | None" = None  # every listener speaks TLS with it; one for all workers of this zygote
