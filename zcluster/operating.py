"""What an operator does to one worker, or says to the app: `zcluster restart`, `kill`, `send`.

Invariant: each command tells what was done and to whom, or fails with the reason; none guesses a slot or a signal.
"""

import json
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from zcluster.errors import BusError, ClusterError, ConfigError, NoReply, PeerGone, RequestFailed, TooLarge
from zcluster.parameters import ANSWER_TIMEOUT_S, SETTINGS, say, which

if TYPE_CHECKING:
    from zcluster.bus.mailbox import Delivery
    from zcluster.cluster import Cluster

TAKEN_TIMEOUT_S: Final = 5.0  # a worker that reads takes a message in milliseconds


@click.command("restart", context_settings=SETTINGS)
@which
@click.argument("slot", type=click.IntRange(min=0), metavar="SLOT")
@click.option("--wait", is_flag=True, help="Return when the new worker serves and the old one is gone, or why not.")
def restart_command(name: str, run_dir: str, slot: int, wait: bool) -> None:
    """Replace the worker of a slot by a new one of the same code: the old one serves until the new one is ready."""
    from zcluster.cluster import Cluster

    with Cluster.attach(name, run_dir=run_dir, timeout_s=ANSWER_TIMEOUT_S, messages=False) as cluster:
        id_ = cluster.restart(slot, wait=wait)
        done = f"worker {id_} serves in slot {slot}"
        ordered = f"the restart of slot {slot} is ordered; the log tells what comes of it"
        say(f"{cluster.name}: {done if wait else ordered}")


@click.command("kill", context_settings=SETTINGS)
@which
@click.argument("slot", type=click.IntRange(min=0), metavar="SLOT")
@click.argument("signal", default="KILL", metavar="[SIGNAL]")
def kill_command(name: str, run_dir: str, slot: int, signal: str) -> None:
    """Send the worker of a slot a signal, by name or number: KILL by default, TERM lets it finish; it is replaced."""
    from zcluster.cluster import Cluster
    from zcluster.core.fleet_deaths import SIGNAL_NAMES
    from zcluster.roster import signal_number

    try:
        number = signal_number(signal)
    except ClusterError as error:
        raise click.BadParameter(str(error), param_hint="SIGNAL") from None
    with Cluster.attach(name, run_dir=run_dir, timeout_s=ANSWER_TIMEOUT_S, messages=False) as cluster:
        id_, pid = cluster.send_signal(slot, number)
        say(f"{cluster.name}: {SIGNAL_NAMES.get(number, number)} sent to worker {id_} (pid {pid}) in slot {slot}")


def _target(_context: click.Context, _parameter: click.Parameter, value: str) -> int | str:
    """Read who a message is for."""
    if value.isascii() and value.isdecimal():
        return int(value)
    if value == "all" or (value.startswith("slot:") and value[5:].isascii() and value[5:].isdecimal()):
        return value
    raise click.BadParameter(f"{value!r} names nobody; give a worker's id, slot:N, or all")


@click.command("send", context_settings=SETTINGS)
@which
@click.argument("target", callback=_target, metavar="ID|slot:N|all")
@click.argument("message", metavar="MESSAGE")
@click.option("--json", "as_json", is_flag=True, help="MESSAGE is JSON, - reads it from stdin; default: a text.")
@click.option("--request", is_flag=True, help="Wait for the reply of that worker, and print it as JSON.")
@click.option("--timeout", type=click.FloatRange(0.001, 3600), default=TAKEN_TIMEOUT_S, metavar="SECONDS",
              help="How long to wait for the receipt, or the reply.", show_default=True)  # fmt: skip
def send_command(
    name: str, run_dir: str, target: int | str, message: str, as_json: bool, request: bool, timeout: float
) -> None:
    """Send a message to workers: their `worker.on("message")` gets it."""
    from zcluster.cluster import Cluster

    payload = _payload(message) if as_json else message
    if request and target == "all":
        raise ConfigError("--request asks one worker; give its id, or slot:N")
    with Cluster.attach(name, run_dir=run_dir, timeout_s=ANSWER_TIMEOUT_S) as cluster:
        try:
            if request:
                said = json.dumps(cluster.request(target, payload, timeout), default=str)
            else:
                said = f"{cluster.name}: {_delivered(_sent(cluster, target, payload), timeout)}"
        except (TypeError, TooLarge) as error:  # an integer of more than 64 bits, more than 32 MiB
            raise ConfigError(str(error)) from None
        except (NoReply, PeerGone, RequestFailed) as error:  # the cluster is there, and has not done it
            raise ClusterError(str(error)) from None
        say(said)


def _payload(text: str) -> Any:
    """Return what a JSON text means."""
    try:
        return json.loads(sys.stdin.read() if text == "-" else text)
    except ValueError as error:
        raise ConfigError(f"the message is no JSON: {error}; without --json it is taken as a text") from None


def _sent(cluster: "Cluster", target: int | str, payload: Any) -> "dict[int, Delivery]":
    """Send to those who are meant; returns the futures by worker id."""
    there = {id_: worker for id_, worker in cluster.workers.items() if worker.is_connected()}
    if target == "all":
        return cluster.broadcast(payload)
    slot = int(target[5:]) if isinstance(target, str) else None
    meant = [
        worker for worker in there.values() if slot in (worker.slot, None) and target in (worker.id, f"slot:{slot}")
    ]
    if not meant:
        ids = ", ".join(f"{worker.id} (slot {worker.slot})" for worker in there.values()) or "none"
        what = f"worker {target}" if slot is None else f"worker in slot {slot}"
        raise ClusterError(f"there is no {what} to send to; there are {ids}")
    newest = max(meant, key=lambda worker: (worker.has_reached("listening"), worker.id))
    return {newest.id: newest.send(payload)}


def _delivered(sent: "dict[int, Delivery]", timeout_s: float) -> str:
    """Wait until all have received it; raises what kept it from one."""
    failed = []
    for id_, delivery in sent.items():
        try:
            delivery.result(timeout_s)
        except TimeoutError:
            failed.append(f"worker {id_} has not received it within {timeout_s:g} s; it may be starting or stuck")
        except BusError as error:
            failed.append(str(error))
    if failed:
        raise ClusterError("; ".join(failed))
    ids = ", ".join(map(str, sent))
    return f"received by worker{'s' if len(sent) > 1 else ''} {ids}" if sent else "there is no worker to receive it"
