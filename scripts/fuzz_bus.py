"""The master's side of the bus, and the launcher's sockets: frames of peers that lie.

`bus` feeds frames as the kernel would attest them to a real Hub, and what it admits to a real Desk, Relay and Fleet,
whose commands are carried out as far as they are messages. `control` feeds datagrams with descriptors to a Channel.
"""

import contextlib
import mmap
import os
import shutil
import socket
import tempfile
import typing

import msgspec
from fuzz_inputs import instance, mutated, plain, small

from zcluster.bus.desk import Desk
from zcluster.bus.hub import Hub
from zcluster.bus.peers import Peers
from zcluster.bus.relay import Relay
from zcluster.core import fleet_events as f
from zcluster.core import messages as m
from zcluster.core.codec import decode, decode_control, decode_pub, encode, encode_control, encode_pub
from zcluster.core.fleet import Fleet
from zcluster.core.fleet_settings import FleetSettings
from zcluster.core.fleet_wire import for_launcher, of_worker
from zcluster.core.ledger import Ledger
from zcluster.core.mail import MASTER, Got, Mail, Missing
from zcluster.core.questions import Questions
from zcluster.core.snapshot import fleet_snapshot, who_is_there
from zcluster.core.verbs import VERBS
from zcluster.errors import BadFrame, BusError
from zcluster.unix.channel import MESSAGE_MAX_BYTES, Channel

PIDS = (1, 1 << 22)  # attested senders: one that lives everywhere, and one that cannot be
LINKS = (b"a" * 16, b"b" * 16, b"c" * 16)
MAILBOXES = ("worker:1", "worker:2", "handle:1-a")  # of these links
WORKERS = 2
LANES = 16
UP = (m.Hello, m.Ready, m.Beat, m.Leaving, m.Resync, m.Ask, Mail, Got, Missing)
KEYS_MAX = 100  # what is counted by reason has few of them, whatever comes
TOKENS = (
    *(b"\xc0", b"\xc1", b"\x80", b"\x90", b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc6\xff\xff\xff\xff"),
    *(
        b"\xdb\xff\xff\xff\xff",
        b"\xcf" + b"\xff" * 8,
        b"\xd3\x80" + bytes(7),
        b"\xcb\x7f\xf8" + bytes(6),
        b"\xa1\xff",
    ),
    *(b"\x91" * 2000, b"\x81" * 2000, b"\xc7\x04\xff\0\0\0\0", b"\xd6\xff\0\0\0\0", b"\x01", b"\x02", b"\0"),
    *(b"\xa3ask", b"\xa5hello", b"\xa4mail", b"\xa3got", b"\xa4beat", b"\xa7missing", b"\xa6worker", b"\xa6handle"),
)


class Frame:
    """What pyzmq hands to the Hub, with the sender that the kernel attests."""

    def __init__(self, data, pid, more):
        self.bytes, self.more, self._pid = data, more, pid

    def __len__(self):
        return len(self.bytes)

    def get(self, option):
        assert option == "Peer-Address"
        return f"localhost:{os.getuid()}:0:{self._pid}"


class Master:
    """Of a master, what decides about messages. Workers 1 and 2 are processes 1, whatever lane they say."""

    def __init__(self, hub, ledger):
        self.hub, self.ledger, self.now = hub, ledger, 0.0
        self.peers = Peers()
        self.relay = Relay(hub, self.peers)
        self.questions = Questions(can_reload=True)
        self.desk = Desk(hub, self.peers, self.relay, self.questions, self, lambda pid: pid + 1000)
        self.fleet = Fleet(FleetSettings(workers=WORKERS, lanes=LANES), 1, 1, lambda: 0.0)
        for event in (f.Started(), f.ZygoteUp(1), f.Imported(1)):
            self.step(event)
        for id_ in range(1, WORKERS + 1):
            info = m.WorkerInfo(id_, id_ - 1, id_ - 1, 1, 1, 1000 + id_)
            for event in (f.Forked(info), f.Hello(info), f.Ready(id_)):
                self.step(event)

    def close(self):
        """Give the descriptors of handles back."""
        for name in list(self.relay._handles):
            self.relay.left(name)

    # ---- as bodies/master ------------------------------------------------------------------------------------------
    def arrive(self, arrival):
        if isinstance(arrival.message, Mail | Got | Missing):
            self.relay.take(arrival)
        elif not isinstance(arrival.message, m.Increments):
            self.desk.take(arrival)

    def is_worker(self, hello):
        worker = hello.worker
        return worker is not None and worker.pid == hello.pid and 0 <= worker.lane < LANES

    def admit(self, worker, link):
        commands = self.fleet.step(f.Hello(worker, link), self.now)
        admitted = self.fleet.by_process(worker.pid, worker.start)
        if admitted is not None and admitted.id == worker.id:
            self.peers.bind(link, worker.id)
        for command in commands:
            self.perform(command)

    def hear(self, id_, message):
        self.step(of_worker(id_, message))

    def ask(self, question):
        self.step(question)

    def stop(self, *, quick):
        encode_control(m.Stop(quick, "asked for"))

    def snapshot(self):
        return fleet_snapshot(
            *(self.fleet, self.now),
            **{"name": "t", "urls": (), "launcher_pid": 1, "master_pid": 1, "zygote_pid": 1, "counters": {}},
            **{"heads": dict(self.hub.heads), "dropped": dict(self.hub.dropped), "received": {}},
            members=self.relay.members(*who_is_there(self.fleet)),
        )

    def step(self, event):
        for command in self.fleet.step(event, self.now):
            self.perform(command)

    def perform(self, command):
        match command:
            case f.StartZygote() | f.Commit() | f.KeepReload() | f.Running() | f.EndZygote():
                encode_control(for_launcher(command))
            case f.SaveNextId(next_id=next_id):
                self.ledger.next_worker_id = next_id
            case f.Fork(worker=worker, env=env):
                encode_control(m.Fork(worker, dict(env)))
            case f.Resize():
                self.questions.resize(command)
            case f.Reply():
                link, answer, told = self.questions.answer(command)
                for message in told:
                    encode_control(message)
                if link:
                    self.hub.send(link, answer)
            case f.SendDrain(id=id_, deadline_s=deadline_s, quick=quick):
                self.hub.send(self.peers.link_of(id_), m.Drain(deadline_s, quick))
            case f.Refuse(link=link, reason=reason):
                self.hub.send(link, m.Refused(reason))
            case f.Announce(kind=kind, worker=worker, text=text):
                self.hub.publish(m.EVENTS, lambda number: m.Event(1, number, kind, worker, text))
                if kind == "exit" and worker is not None:
                    self.peers.forget(worker.id)
                    self.relay.exited(worker.id)


def introduced():
    """The Hellos of two workers and of a handle, as they should be."""
    for id_, link in enumerate(LINKS[:WORKERS], 1):
        info = m.WorkerInfo(id_, id_ - 1, id_ - 1, 1, 1, 1000 + id_)
        yield link, m.Hello(link, "worker", 1, info, f"worker:{id_}")
    yield LINKS[2], m.Hello(LINKS[2], "handle", 1, None, "handle:1-a", True)


def upward(random, link):
    """A message as a peer may send it: good enough, most of them, to be admitted and to come far."""
    kind = random.choice(UP)
    fixed = {}
    if kind is m.Hello:
        worker = None
        if random.random() < 0.6:
            near = {"id": random.choice((1, 2, 3)), "lane": random.randrange(3), "pid": 1}
            near["start"] = 1000 + near["id"]
            fields = {name: value for name, value in near.items() if random.random() < 0.9}
            worker = instance(random, m.WorkerInfo, **fields)
        role = "worker" if worker else random.choice(("handle", "service"))
        fixed = {"link": link, "pid": random.choice(PIDS), "worker": worker, "role": role}
    elif kind is m.Ask and random.random() < 0.8:
        words = plain(random) if random.random() < 0.3 else {random.choice(("to", "by", "worker", "slot")): 1}
        if random.random() < 0.5:
            words = {"slot": random.randrange(3), "signal": 9, "worker": random.randrange(4)}
        args = msgspec.msgpack.encode(words)
        if random.random() < 0.2:
            args = random.choice(
                (b"\x81\xa1\xff\xc3", b"\xa1\xff", b"\x81\xa5token\xa1\xff", b"\x91" * 500 + b"\xc0")
            )
        fixed = {"verb": random.choice((*sorted(VERBS), "stop", "snapshot")), "args": msgspec.Raw(args)}
    elif kind is m.Beat and random.random() < 0.5:
        fixed = {"refused": {"reason": small(random)}, "slow": (instance(random, m.SlowRequest),)}
    elif kind in (Mail, Got) and random.random() < 0.8:
        fixed = {"sender": MAILBOXES[LINKS.index(link)], "to": random.choice((*MAILBOXES, MASTER)), "stream": 1}
    elif kind is Missing and random.random() < 0.7:
        fixed = {"first": random.randrange(1, 4), "last": random.randrange(1, 6)}
    if kind is Mail and random.random() < 0.7:
        fixed["number"] = random.randrange(1, 4)
    return instance(random, kind, **fixed)


class Bus:
    """Frames of `ctl` and `evt` to a master; and the decoders of all three sockets."""

    name = "bus"

    def __enter__(self):
        self.folder = tempfile.mkdtemp(prefix="zc-fuzz-", dir="/dev/shm")
        self.hub = Hub(self.folder, 1)
        self.block = mmap.mmap(-1, Ledger.size_bytes(LANES, 4))
        Ledger.format(self.block, lanes=LANES, counters=4, ledger_id=b"L" * 16, boot_id=b"b" * 16).release()
        return self

    def __exit__(self, *_):
        self.hub.close(linger_ms=0)
        shutil.rmtree(self.folder)

    def make(self, random):
        """Steps: socket, attested pid, link, whether more frames follow, frame."""
        steps = []
        if random.random() < 0.8:
            steps += [("ctl", 1, link, False, encode(hello)) for link, hello in introduced()]
        for _ in range(random.randrange(1, 25)):
            link = random.choice(LINKS)
            is_event = random.random() < 0.05
            frame = encode(instance(random, m.Increments) if is_event else upward(random, link))
            if random.random() < 0.2:
                frame = mutated(random, frame, TOKENS, [step[-1] for step in steps])
            socket_ = "evt" if is_event or random.random() < 0.02 else "ctl"
            steps.append((socket_, PIDS[random.random() < 0.05], link, random.random() < 0.01, frame))
        return steps

    def run(self, steps):
        master = Master(self.hub, Ledger(self.block))
        try:
            for socket_, pid, link, more, frame in steps:
                self._decoders(frame)
                arrival = self.hub._admit(socket_, link, Frame(frame, pid, more))
                if isinstance(arrival, str):
                    self.hub.dropped[f"{socket_}:{arrival}"] += 1
                    continue
                master.now += 0.01
                master.arrive(arrival)
            master.relay.acknowledge()
            master.step(f.Ticked())
            encode(m.Welcome(1, 1, master.snapshot()))
            self.hub.tick()
            master.fleet.check()
        finally:
            master.close()
        assert len(self.hub.dropped) < KEYS_MAX, sorted(self.hub.dropped)
        assert len(self.hub.heads) < KEYS_MAX, sorted(self.hub.heads)

    def _decoders(self, frame):
        with contextlib.suppress(BadFrame):
            message = decode(frame)
            assert encode(decode(encode(message))) == encode(message)
        with contextlib.suppress(BadFrame):
            topic, message = decode_pub(frame)
            assert encode_pub(topic, message)
        with contextlib.suppress(BadFrame):
            decode_pub(b"\x01t\0" + frame[1:])
        with contextlib.suppress(BadFrame):
            decode_control(frame)


class Control:
    """Datagrams with descriptors to a Channel: a list of messages or a BusError, and no descriptor is left over."""

    name = "control"

    def __enter__(self):
        self.null = os.open("/dev/null", os.O_RDONLY)
        return self

    def __exit__(self, *_):
        os.close(self.null)

    def make(self, random):
        """Steps: the datagram, and how many descriptors go with it."""
        kinds, steps = typing.get_args(m.Control), []
        for _ in range(random.randrange(1, 12)):
            frame = encode_control(instance(random, random.choice(kinds)))
            if random.random() < 0.3:
                frame = mutated(random, frame, TOKENS, [frame for frame, _ in steps])
            fds = random.choice((0, 0, 0, 1, 2, 8, 9)) if random.random() < 0.5 else 0
            steps.append((frame[:MESSAGE_MAX_BYTES], fds))
        return steps

    def run(self, steps):
        before = len(os.listdir("/proc/self/fd"))
        for first in (False, True):
            channel, theirs = Channel.pair()
            try:
                theirs.setblocking(False)
                self._say(theirs, steps)
                self._hear(channel, first)
            finally:
                theirs.close()
                channel.close()
        assert len(os.listdir("/proc/self/fd")) == before, "descriptors are left open"

    def _say(self, theirs, steps):
        for frame, fds in steps:
            with contextlib.suppress(BlockingIOError):
                socket.send_fds(theirs, [frame], [self.null] * fds)
        theirs.shutdown(socket.SHUT_WR)

    def _hear(self, channel, first):
        if first:
            with contextlib.suppress(BusError):
                channel.first_message()
            return
        for _ in range(100):
            if channel.closed:
                return
            try:
                arrived = channel.receive()
            except BusError:
                continue
            for message, fds in arrived:
                for fd in fds:
                    os.close(fd)
                assert encode_control(decode_control(encode_control(message))) == encode_control(message)
        raise AssertionError("the end of the channel was never seen")
