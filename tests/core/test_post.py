"""What one peer has to send: each message is settled exactly once, whoever comes, leaves, or loses it on the way."""

from collections import defaultdict, deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zcluster.core import post as post_module
from zcluster.core import streams
from zcluster.core.mail import MASTER, Got, Members, worker_id, worker_name
from zcluster.core.outbox import QueueFull
from zcluster.core.post import ABSENT_S, FOREIGN_S, HANDLES, KEEP_S, LEAVING_S, Post
from zcluster.core.streams import Incoming, Parcel
from zcluster.errors import PeerGone

PIECE, WINDOW = 4, 5


@pytest.fixture(scope="module", autouse=True)
def small():
    """Pieces and windows of a few bytes and frames."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(streams, "PIECE_BYTES", PIECE)
        patch.setattr(streams, "WINDOW_PIECES", WINDOW)
        yield


class World:
    """A post, a master that may die, and receivers that come and go; frames may be lost, their order is kept."""

    def __init__(self):
        self.post, self.now = Post("worker:1"), 1.0
        self.epoch, self.number, self.linked = 1, 0, False
        self.workers, self.next_id = {1, 2, 3}, 4
        self.handles = set()  # those that live
        self.away = set()  # of them, those that this master does not know (yet)
        self.handles_made = 0
        self.incoming = defaultdict(Incoming)
        self.frames = deque()
        self.arrived = defaultdict(list)  # bodies, by receiver
        self.sent = defaultdict(list)
        self.tickets = 0
        self.open = {}  # ticket -> how many copies are not settled
        self.settled = defaultdict(list)

    # ---- steps -----------------------------------------------------------------------------------------------------
    def send(self, n):
        to = ("worker:2", "worker:3", "worker:4", MASTER, HANDLES, *sorted(self.handles))[n % (5 + len(self.handles))]
        self.tickets += 1
        body = f"{self.tickets}".encode().ljust(1 + n, b".")
        try:
            copies = self.post.put(to, Parcel("message", body, self.tickets), self.now)
        except PeerGone:
            assert to not in self.there() or to == "worker:4"
            return
        self.open[self.tickets] = max(1, copies)
        self.sent[to].append(body)

    def there(self):
        return {*(f"worker:{id_}" for id_ in self.workers), *self.handles, MASTER}

    def pump(self, n):
        if not self.linked:
            return
        for count, (stream, mail) in enumerate(self.post.pieces()):
            if count > n:
                break
            self.frames.append(mail)
            stream.sent(self.now)

    def deliver(self, n):
        for _ in range(min(n, len(self.frames))):
            mail = self.frames.popleft()
            if not self.linked or mail.to not in self.there() or mail.to in self.away:
                continue
            incoming = self.incoming[mail.to]
            if incoming.meet(mail) and (body := incoming.take(mail)) is not None:
                self.arrived[mail.to].append(body)
            self.hear(Got(mail.to, "worker:1", incoming.stream, incoming.upto, WINDOW))

    def hear(self, got):
        for parcel in self.post.got(got, self.now):
            self.settle(parcel.ticket, "received")

    def settle(self, ticket, how):
        if ticket:
            assert self.open[ticket] > 0, "settled twice"
            self.open[ticket] -= 1
            self.settled[ticket].append(how)

    def lose(self, n):
        for _ in range(min(n, len(self.frames))):
            self.frames.popleft()

    def members(self, _n=0):
        self.number += 1
        news = Members(
            self.epoch,
            self.number,
            dict.fromkeys(self.workers, (0, True)),
            dict.fromkeys(sorted(self.handles - self.away), False),
            self.next_id,
        )
        if self.linked:
            self.post.learn(news, self.now)
            self.take_news()

    def take_news(self):
        for ticket, count in self.post.spread:
            assert self.open[ticket] == 1
            self.open[ticket] = count
        self.post.spread = []
        for parcel, reason in self.post.failed:
            assert reason
            self.settle(parcel.ticket, reason)
        self.post.failed = []

    def kill(self, n):
        if victims := sorted(self.workers - {1}):
            self.workers.discard(victims[n % len(victims)])
            self.members()

    def born(self, _n):
        self.workers.add(self.next_id)
        self.next_id += 1
        self.members()

    def open_handle(self, _n):
        self.handles_made += 1
        self.handles.add(f"handle:9-{self.handles_made}")
        self.members()

    def close_handle(self, n):
        if self.handles:
            name = sorted(self.handles)[n % len(self.handles)]
            self.handles.discard(name)
            self.away.discard(name)
            self.members()

    def handles_come(self, _n):
        self.away.clear()
        self.members()

    def part(self, _n):
        self.linked = False
        self.frames.clear()
        self.post.parted()

    def link(self, n):
        """Again to the same master, or (every third time) to the next one."""
        new = n % 3 == 0
        if new:
            self.part(0)
            self.epoch, self.number, self.away = self.epoch + 1, 0, set(self.handles)
            self.incoming.pop(MASTER, None)
        self.linked = True
        self.frames.clear()
        self.post.linked(self.now, new_master=new)
        self.members()

    def wait(self, n):
        self.now += n / 4
        if self.now >= self.post.due:
            self.post.expire(self.now)
            self.take_news()
            assert self.post.due > self.now, "its thread would spin"

    # ---- what holds ------------------------------------------------------------------------------------------------
    def check(self):
        kept = [parcel for stream in self.post._streams.values() for parcel in stream.parcels()]
        kept += self.post._parked
        assert self.post.count == len(kept)
        assert self.post.bytes == sum(len(parcel.body) for parcel in kept)
        waiting = defaultdict(int)
        for parcel in kept:
            waiting[parcel.ticket] += 1
        assert {ticket: n for ticket, n in self.open.items() if n} == {t: n for t, n in waiting.items() if t}

    def finish(self):
        """Nothing is lost from now on, and all handles come back: everything is settled within bounded time."""
        self.link(1)
        self.handles_come(0)
        end = self.now + 3 * ABSENT_S
        while self.post.count:
            self.pump(1000)
            moved = bool(self.frames)
            self.deliver(len(self.frames))
            self.check()
            if self.post.count and not moved:
                assert self.now <= end, "something is never settled"
                self.now = max(self.now, self.post.due)
                self.wait(0)
        assert not any(self.open.values())


OPS = ["lose", "kill", "born", "open_handle", "close_handle", "handles_come", "part"]
OPS += ["send", "send", "send", "pump", "pump", "deliver", "deliver", "link", "link", "wait", "wait"]


@settings(max_examples=300)
@given(st.lists(st.tuples(st.sampled_from(OPS), st.integers(0, 9)), max_size=50))
def test_every_message_is_settled_once_whoever_comes_and_goes(steps):
    """Received or given up, exactly once; in order, at most once; and never given up while its receiver lives."""
    world = World()
    for op, n in steps:
        getattr(world, op)(n)
        world.check()
    world.finish()
    for name, bodies in world.arrived.items():
        if name != MASTER:  # the next one may be told twice
            assert len(bodies) == len(set(bodies))
            for to in (name, HANDLES):
                of_one = [body for body in bodies if body in world.sent[to]]
                assert of_one == [body for body in world.sent[to] if body in bodies]
    for id_ in (2, 3):
        if id_ in world.workers:
            assert world.arrived[f"worker:{id_}"] == world.sent[f"worker:{id_}"]


def members(number, *ids, handles=(), epoch=1, next_id=10):
    return Members(epoch, number, dict.fromkeys(ids, (0, True)), dict.fromkeys(handles, False), next_id)


def joined(*ids, handles=()):
    """A post that knows who is there."""
    post = Post("worker:1")
    post.linked(1.0, new_master=False)
    post.learn(members(1, 1, *ids, handles=handles), 1.0)
    return post


def parcel(ticket=1, body=b"x", **fields):
    return Parcel("message", body, ticket, **fields)


def test_what_is_sent_before_there_is_a_link_waits_however_long_that_takes():
    """An app that sends while it is imported, or while no master lives, must not lose it to a deadline."""
    post = Post("worker:1")
    post.put("worker:99", parcel(1), 0.0)
    post.put(HANDLES, parcel(2), 0.0)
    assert post.due == float("inf")
    post.expire(1000.0)
    assert post.failed == []
    post.linked(1000.0, new_master=False)
    post.expire(1000.0 + ABSENT_S - 0.1)
    assert post.failed == []
    post.parted()
    post.expire(3000.0)
    post.learn(members(1, 1), 3000.0)
    assert post.failed == []


def test_an_older_list_of_members_than_the_known_one_is_ignored():
    """The snapshot that fills a gap and the publications of pub overtake one another."""
    post = joined(2)
    post.learn(members(3, 1, 2, 3), 1.0)
    post.put("worker:3", parcel(), 1.0)
    post.learn(members(2, 1, 2), 1.0)
    assert post.is_there("worker:3")
    assert post.failed == []


def test_a_handle_that_has_ended_is_gone_at_once_and_one_that_lost_its_master_is_waited_for():
    """The master that named it watches its process; the next one may not have heard of it yet."""
    post = joined(handles=["handle:1-a", "handle:1-b"])
    post.put("handle:1-a", parcel(1), 1.0)
    post.put("handle:1-b", parcel(2), 1.0)
    post.learn(members(2, 1, handles=["handle:1-b"]), 1.0)
    assert [(p.ticket, "ended" in reason) for p, reason in post.failed] == [(1, True)]
    with pytest.raises(PeerGone):
        post.put("handle:1-a", parcel(3), 1.0)
    post.linked(2.0, new_master=True)
    post.learn(members(1, 1, epoch=2), 2.0)
    post.expire(2.0 + ABSENT_S - 0.01)
    assert len(post.failed) == 1
    assert post.due == pytest.approx(2.0 + ABSENT_S)
    post.expire(2.0 + ABSENT_S)
    assert [p.ticket for p, _reason in post.failed] == [1, 2]
    post.put("handle:1-b", parcel(4), 8.0)  # it has only been stopped, and comes back: a new stream to it
    post.learn(members(2, 1, handles=["handle:1-b"], epoch=2), 9.0)
    ((_stream, mail),) = take_all(post, 9.0)
    assert (mail.number, mail.stream) == (1, 3)
    assert [p.ticket for p in post.got(Got("handle:1-b", "worker:1", 3, 1, 5), 9.0)] == [4]


def test_the_names_of_handles_that_have_ended_are_not_kept_for_ever(monkeypatch):
    """The oldest is forgotten; it is waited for in vain then, like a name that never was."""
    monkeypatch.setattr(post_module, "GONE_MAX", 3)
    post = joined()
    for number in range(2, 12, 2):
        post.learn(members(number, 1, handles=[f"handle:1-{number}"]), 1.0)
        post.learn(members(number + 1, 1), 1.0)
    assert [post.is_there(f"handle:1-{number}") for number in range(2, 12, 2)] == [None, None, False, False, False]


def test_what_was_published_reliably_is_published_again_to_the_next_master_in_order():
    """Those that the old one had taken lately, with the time of the first attempt, then those it had not."""
    post = joined()
    for serial in range(1, 5):
        post.put(MASTER, parcel(serial, topic="t", serial=serial, reliable=serial % 2 == 1), 1.0)
    for stream, _mail in post.pieces():
        stream.sent(1.5)
    assert [p.ticket for p in post.got(Got(MASTER, "worker:1", 1, 3, 5), 1.6)] == [1, 2, 3]
    post.parted()
    post.linked(3.0, new_master=True)
    sent = [(mail.serial, mail.at, mail.stream) for _stream, mail in take_all(post, 3.0)]
    assert sent == [(1, 1.5, 2), (3, 1.5, 2), (4, 1.5, 2)]
    assert [p.ticket for p in post.got(Got(MASTER, "worker:1", 2, 3, 5), 3.1)] == [0, 0, 4]
    post.linked(3.2 + KEEP_S, new_master=True)
    assert take_all(post, 9.0) == []
    assert post.count == 0


def take_all(post, now):
    out = []
    for stream, mail in post.pieces():
        out.append((stream, mail))
        stream.sent(now)
    return out


def test_what_is_kept_for_the_next_master_is_bounded(monkeypatch):
    """In number and in bytes."""
    monkeypatch.setattr(post_module, "KEEP_MAX", 3)
    monkeypatch.setattr(post_module, "KEEP_MAX_BYTES", 10)
    post = joined()
    for serial in range(1, 9):
        post.put(MASTER, parcel(serial, body=b"xxxx", topic="t", serial=serial, reliable=True), 1.0)
        for stream, mail in post.pieces():
            stream.sent(1.0)
            post.got(Got(MASTER, "worker:1", 1, mail.number, 5), 1.0)
    post.linked(2.0, new_master=True)
    assert [mail.serial for _stream, mail in take_all(post, 2.0)] == [7, 8]


def test_a_full_post_refuses_and_a_reply_always_finds_room(monkeypatch):
    """QueueFull says how much waits; whoever asked must be answered all the same."""
    monkeypatch.setattr(post_module, "MESSAGES_MAX", 2)
    post = joined(2)
    post.put("worker:2", parcel(1), 1.0)
    post.put("worker:2", parcel(2), 1.0)
    with pytest.raises(QueueFull, match="2 messages"):
        post.put("worker:2", parcel(3), 1.0)
    post.put("worker:2", parcel(4), 1.0, force=True)
    for stream, mail in post.pieces():
        stream.sent(1.0)
        post.got(Got("worker:2", "worker:1", 1, mail.number, 5), 1.0)
    post.put("worker:2", parcel(5), 1.0)
    monkeypatch.setattr(post_module, "BYTES_MAX", 10)
    post.put("worker:2", parcel(6, body=b"x" * 50), 1.0)
    with pytest.raises(QueueFull, match="51 bytes"):
        post.put("worker:2", parcel(7), 1.0)


def test_one_receiver_that_does_not_listen_leaves_room_for_the_others(monkeypatch):
    """A stopped worker, or a handle nobody reads, is full by itself, and the error names it."""
    monkeypatch.setattr(post_module, "ONE_MESSAGES_MAX", 2)
    post = joined(2, 3, handles=["handle:1-a", "handle:1-b"])
    for to in ("worker:2", "worker:2", "handle:1-b", "handle:1-b"):
        post.put(to, parcel(), 1.0)
    for who in ("worker:2", "handle:1-b"):
        with pytest.raises(QueueFull, match=f"2 messages .2 bytes. wait to be received by {who}"):
            post.put(who, parcel(), 1.0)
    assert post.put("worker:3", parcel(), 1.0) == post.put("handle:1-a", parcel(), 1.0) == 1
    monkeypatch.setattr(post_module, "ONE_MESSAGES_MAX", 9)
    monkeypatch.setattr(post_module, "ONE_BYTES_MAX", 5)
    post.put("worker:3", parcel(body=b"x" * 10), 1.0)
    with pytest.raises(QueueFull, match="by worker:3"):
        post.put("worker:3", parcel(), 1.0)


def test_a_handle_that_only_watches_holds_up_nobody(monkeypatch):
    """Full, it gets no more of what is for all; the one that started the cluster makes its senders wait."""
    monkeypatch.setattr(post_module, "ONE_MESSAGES_MAX", 2)
    post = joined(handles=["handle:1-a", "handle:1-b"])
    for _ in range(2):
        post.put("handle:1-b", parcel(), 1.0)
    assert (post.put(HANDLES, parcel(7), 1.0), post.skipped) == (1, 1)
    post.learn(members(2, 1, handles=["handle:1-a", "handle:1-b", "handle:1-c"]), 1.0)
    assert (post.put(HANDLES, parcel(8), 1.0), post.skipped) == (2, 2)
    post.learn(Members(1, 3, {}, {"handle:1-a": False, "handle:1-b": True}, 9), 1.0)
    with pytest.raises(QueueFull, match="by handle:1-b"):
        post.put(HANDLES, parcel(), 1.0)


def test_who_leaves_waits_two_seconds_for_a_handle_that_only_watches():
    """For the one that started the cluster it waits as long as it may."""
    post = joined()
    post.learn(Members(1, 2, {}, {"handle:1-a": False, "handle:1-b": True}, 9), 1.0)
    post.put(HANDLES, parcel(1), 1.0)
    post.leave(10.0)
    assert post.due == 10.0 + FOREIGN_S
    post.expire(10.0 + FOREIGN_S - 0.01)
    assert post.failed == []
    post.expire(10.0 + FOREIGN_S)
    post.expire(10.0 + FOREIGN_S + 0.01)
    assert [(p.ticket, reason) for p, reason in post.failed] == [
        (1, "handle:1-a does not read, and its sender has left")
    ]
    assert post.count == 1


def test_who_leaves_does_not_wait_long_for_a_handle_that_nobody_opens():
    """A cluster of the command line has none: each of its workers would take seconds to leave."""
    post = joined()
    post.put(HANDLES, parcel(1), 10.0)
    assert post.due == 10.0 + ABSENT_S
    post.leave(10.0)
    assert post.due == 10.0 + LEAVING_S
    post.expire(10.0 + LEAVING_S)
    assert [p.ticket for p, _reason in post.failed] == [1]


def test_a_long_message_holds_up_its_own_stream_only():
    """Pieces of all streams take turns."""
    post = joined(2, 3)
    post.put("worker:2", parcel(1, body=b"x" * 12), 1.0)
    post.put("worker:3", parcel(2), 1.0)
    assert [mail.to for _stream, mail in take_all(post, 1.0)] == ["worker:2", "worker:3", "worker:2", "worker:2"]


def test_the_workers_that_are_ready_are_known_by_slot():
    """Nobody, before anything was heard of them."""
    post = Post("worker:1")
    assert post.workers() == []
    post.learn(Members(1, 1, {1: (0, True), 2: (1, False), 3: (1, True)}, {}, 4), 1.0)
    assert (post.workers(), post.workers(slot=1), post.workers(slot=2)) == ([1, 3], [3], [])


def test_a_receiver_that_knows_less_than_it_said_gets_what_it_has_not_acknowledged_again():
    """In a new stream; and the words of one that is sent nothing mean nothing."""
    post = joined(2)
    for ticket in (1, 2):
        post.put("worker:2", parcel(ticket), 1.0)
    take_all(post, 1.0)
    assert [p.ticket for p in post.got(Got("worker:2", "worker:1", 1, 1, 5), 1.0)] == [1]
    assert post.got(Got("worker:2", "worker:1", 1, 0, 5), 1.1) == []
    ((_stream, mail),) = take_all(post, 1.1)
    assert (mail.sender, mail.to, mail.stream, mail.number) == ("worker:1", "worker:2", 2, 1)
    assert post.got(Got("worker:3", "worker:1", 1, 1, 5), 1.1) == []


def test_at_the_end_everything_is_given_up_for_one_reason():
    """What is on its way, and what waits for a handle; nothing is kept."""
    post = joined(2)
    post.put("worker:2", parcel(1), 1.0)
    post.put(HANDLES, parcel(2), 1.0)
    post.clear("the end")
    assert [(p.ticket, reason) for p, reason in post.failed] == [(1, "the end"), (2, "the end")]
    assert (post.count, post.bytes) == (0, 0)


def test_names_of_mailboxes():
    """A worker's has its id in it; no other one has."""
    assert worker_id(worker_name(17)) == 17
    assert worker_id("handle:1-a") is None
    assert worker_id("worker:x") is None
    assert worker_id(worker_name(2**64 - 1)) == 2**64 - 1
    for name in ("worker:007", "worker:\u0667", "worker:" + "9" * 21, "worker:", "worker", "x:worker:1", ""):
        assert worker_id(name) is None


@pytest.mark.parametrize(
    ("to", "before", "now", "is_repeated"),
    [
        ("worker:2", {2: (0, False)}, {2: (0, True)}, True),
        ("worker:2", {2: (0, True)}, {2: (0, True)}, False),
        ("worker:12", {}, {12: (0, True)}, True),
        ("worker:12", {}, {12: (0, False)}, False),
        ("worker:22", {}, {12: (0, True)}, False),
        ("handle:1-a", [], ["handle:1-a"], True),
        ("handle:1-a", ["handle:1-a"], ["handle:1-a", "handle:1-b"], False),
        ("handle:1-a", [], ["handle:1-b"], False),
    ],
)
def test_what_was_sent_before_its_receiver_listened_is_sent_again_when_it_does(to, before, now, is_repeated):
    """At once, when it comes or becomes ready, not when the sender's patience ends; and not for what others do."""
    post = Post("worker:1")
    post.linked(1.0, new_master=False)
    for number, there in enumerate((before, now), 1):
        workers, handles = (there, {}) if isinstance(there, dict) else ({}, dict.fromkeys(there, False))
        post.learn(Members(1, number, workers, handles, 10 + 5 * number - 5), 1.0)
        if number == 1:
            post.put(to, parcel(), 1.0)
            assert len(take_all(post, 1.0)) == 1
    assert [mail.to for _stream, mail in take_all(post, 1.0)] == [to] * is_repeated


def test_who_is_certain_to_be_there_or_not():
    """A worker with the next id is not born yet; one below it that is not named has ended."""
    post = joined(2)
    assert (post.is_there("worker:2"), post.is_there("worker:9"), post.is_there("worker:10")) == (True, False, None)
    post.put("worker:2", parcel(), 1.0)
    assert post.due == float("inf")
    post.put("worker:10", parcel(), 1.0)
    assert post.due == 1.0 + ABSENT_S


def test_a_new_link_repeats_what_may_have_been_lost_at_once():
    """To everybody; what was for the master itself goes to the next one from the beginning."""
    for new_master in (False, True):
        post = joined(2)
        post.put("worker:2", parcel(1), 1.0)
        post.put(MASTER, parcel(2, topic="t"), 1.0)
        assert len(take_all(post, 1.0)) == 2
        post.parted()
        post.linked(1.1, new_master=new_master)
        assert {mail.to for _stream, mail in take_all(post, 1.1)} == {"worker:2", MASTER}


def test_who_ends_with_everything_received_leaves_nothing_behind():
    """No message of his is open; what he said twice changes nothing."""
    post = joined(2)
    post.put("worker:2", parcel(1), 1.0)
    take_all(post, 1.0)
    assert [p.ticket for p in post.got(Got("worker:2", "worker:1", 1, 1, 5), 1.0)] == [1]
    assert post.got(Got("worker:2", "worker:1", 1, 1, 5), 1.0) == []
    post.learn(members(2, 1), 1.0)
    assert (post.failed, post.count, post.due) == ([], 0, float("inf"))


def test_what_waited_for_a_handle_goes_to_it_however_much_waits(monkeypatch):
    """It was accepted when there was room; it is a message, and carries no time."""
    monkeypatch.setattr(post_module, "MESSAGES_MAX", 2)
    post = joined(2)
    assert post.put(HANDLES, parcel(1), 1.0) == 0
    for ticket in (2, 3):
        post.put("worker:2", parcel(ticket), 1.0, force=True)
    post.learn(members(2, 1, 2, handles=["handle:1-a", "handle:1-b"]), 1.0)
    assert (post.spread, post.count) == ([(1, 2)], 4)
    assert {(mail.to, mail.at) for _stream, mail in take_all(post, 1.0) if mail.to != "worker:2"} == {
        ("handle:1-a", 0.0),
        ("handle:1-b", 0.0),
    }


def test_bounds_are_reached_by_what_is_exactly_as_much(monkeypatch):
    """Bytes of all, and of one receiver: what is full is full."""
    for limit in ("BYTES_MAX", "ONE_BYTES_MAX"):
        with monkeypatch.context() as patch:
            patch.setattr(post_module, limit, 8)
            post = joined(2)
            post.put("worker:2", parcel(body=b"xxxxxxx"), 1.0)
            post.put("worker:2", parcel(), 1.0)
            with pytest.raises(QueueFull, match="8 bytes"):
                post.put("worker:2", parcel(), 1.0)


@pytest.mark.parametrize(
    ("most", "most_bytes", "age_s", "kept"), [(3, 99, 0.0, 3), (9, 8, 0.0, 2), (9, 99, KEEP_S, 8)]
)
def test_exactly_as_much_as_may_be_is_kept_for_the_next_master(monkeypatch, most, most_bytes, age_s, kept):
    """In number, in bytes and in age; and again for the master after that."""
    monkeypatch.setattr(post_module, "KEEP_MAX", most)
    monkeypatch.setattr(post_module, "KEEP_MAX_BYTES", most_bytes)
    post = joined()
    for serial in range(1, 9):
        post.put(MASTER, parcel(serial, body=b"xxxx", topic="t", serial=serial, reliable=True), 1.0)
    for _ in range(3):
        for sender, mail in post.pieces():
            sender.sent(1.0)
            post.got(Got(MASTER, "worker:1", mail.stream, mail.number, 5), 1.0)
        post.linked(1.0 + age_s, new_master=True)
        assert [mail.serial for _stream, mail in take_all(post, 1.0)] == list(range(9 - kept, 9))[:WINDOW]
        post.linked(1.0, new_master=False)
