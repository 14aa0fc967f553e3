"""What a handle tells its callbacks, and in which order, whatever comes in whatever order. No cluster is started."""

import threading
from collections import Counter

import msgspec
import pytest
from handle_rig import until

from zcluster import ClusterError, PeerGone, callbacks
from zcluster.core.joining import Joined, Refreshed
from zcluster.core.messages import Event, Snapshot, WorkerInfo
from zcluster.news import EARLY_MAX, KEPT_MAX, KEPT_MAX_BYTES, News


def info(id_, state="ready", **more):
    """A worker in slot `id_ - 1`."""
    return WorkerInfo(id=id_, slot=id_ - 1, lane=id_ - 1, generation=1, pid=1000 + id_, start=1, state=state, **more)


def event(kind, worker=None, text=""):
    """Something the master published."""
    return Event(1, 0, kind, worker, text)


def joined(*workers, urls=("http://127.0.0.1:80", "unix:/run/x")):
    """The first thing a link delivers."""
    return Joined(Snapshot("app", urls, 1, 1, "running", 10, 11, 12, {}, workers), False)


class Mail:
    """Messages of workers, and how many of them were decoded, which has to happen once to each."""

    def __init__(self, news):
        self.news, self.decoded = news, Counter()

    def come(self, id_, payload, size_bytes=100):
        """One arrives."""

        def decode():
            self.decoded[payload] += 1
            return payload

        self.news.mail(f"worker:{id_}", size_bytes, decode)


@pytest.fixture
def news():
    """News of a cluster without workers; its callbacks' thread ends with the test."""
    found = News(lambda: None)
    found.take([joined()])
    yield found
    found.callbacks.close()


@pytest.fixture
def mail(news):
    """What workers send."""
    return Mail(news)


def record(news, told, *kinds):
    """Note what is told, as (kind, id of the worker or None, further arguments)."""
    for kind in kinds:
        news.on(kind, lambda worker, *more, kind=kind: told.append((kind, worker and worker.id, *more)))


def finish(news):
    """Have everything called that is in line."""
    done = threading.Event()
    news.callbacks.put(done.set)
    assert done.wait(20)


def test_mail_waits_for_the_birth_and_never_follows_the_death(news, mail):
    """It overtakes the events on another socket; callbacks hear online, messages, exit; what is late is counted."""
    told = []
    record(news, told, "fork", "online", "message", "exit")
    mail.come(1, "first")
    news.take([event("fork", info(1, "forked"))])
    mail.come(1, "second")
    news.take([event("online", info(1, "online"))])
    mail.come(1, "third")
    news.take([event("exit", info(1, "dead", exitcode=0))])
    mail.come(1, "late")
    mail.come(2, "of one that is never seen alive")
    news.take([event("exit", info(2, "dead", signal=9))])
    finish(news)
    assert told == [
        *(("fork", 1), ("online", 1)),
        *(("message", 1, text) for text in ("first", "second", "third")),
        *(("exit", 1, 0, None), ("fork", 2), ("exit", 2, None, 9)),
    ]
    assert news.dropped == {"messages after the exit of their worker": 2}
    assert set(mail.decoded.values()) == {1}


def test_mail_of_unknown_workers_is_bounded(news, mail):
    """The oldest go first, are counted, and give their room back to the mailbox."""
    told = []
    record(news, told, "message")
    for number in range(EARLY_MAX + 5):
        mail.come(1, number)
    news.take([event("online", info(1, "online"))])
    finish(news)
    assert [entry[2] for entry in told] == list(range(5, EARLY_MAX + 5))
    assert news.dropped == {"messages of unknown workers": 5}
    assert mail.decoded == dict.fromkeys(range(EARLY_MAX + 5), 1)


def test_what_nobody_listens_to_is_kept_within_bounds(news, mail):
    """By number and by size; one that is larger than all room is kept as long as it is the newest."""
    news.take([event("online", info(1, "online"))])
    for number in range(KEPT_MAX + 3):
        mail.come(1, number)
    mail.come(1, "huge", KEPT_MAX_BYTES + 1)
    told = []
    record(news, told, "message")
    finish(news)
    assert told == [("message", 1, "huge")]
    assert news.dropped == {"messages that nobody listened to": KEPT_MAX + 3}
    mail.come(1, "heard")
    finish(news)
    assert told[1:] == [("message", 1, "heard")]
    assert set(mail.decoded.values()) == {1}


def test_a_handle_that_keeps_nothing_drops_in_silence(news, mail):
    """As Node does: no function, no message."""
    news.keeps_mail = False
    news.take([event("online", info(1, "online"))])
    mail.come(1, "unheard")
    told = []
    record(news, told, "message")
    mail.come(1, "heard")
    finish(news)
    assert told == [("message", 1, "heard")]
    assert news.dropped == {}
    assert mail.decoded == {"unheard": 1, "heard": 1}


def test_a_message_is_decoded_once_for_all_who_listen(news, mail):
    """A worker's own functions come first; what cannot be decoded fails each of them, and nothing else."""
    told = []
    news.take([event("online", info(1, "online"))])
    worker = news.roster.workers[1]
    news.on_worker(worker, "message", lambda payload: told.append(("own", payload)))
    record(news, told, "message")
    mail.come(1, "text")
    news.mail("worker:1", 3, lambda: msgspec.msgpack.decode(b"\xc1"))
    mail.come(1, "more")
    finish(news)
    assert told == [("own", "text"), ("message", 1, "text"), ("own", "more"), ("message", 1, "more")]
    assert mail.decoded == {"text": 1, "more": 1}


def test_details_of_events(news):
    """A worker's listening names the first address, an error its text, a reload the generation."""
    told = []
    record(news, told, "listening", "error")
    news.on("reload", lambda generation: told.append(generation))
    news.take([event("listening", info(1)), event("error", info(1), "hung"), event("error", None, "no zygote")])
    news.take([event("listening", msgspec.structs.replace(info(2), generation=7)), event("reload")])
    finish(news)
    worker = news.roster.workers[1]
    assert told == [
        *(("listening", 1, ("127.0.0.1", 80, "tcp4", None)), ("error", 1, "hung"), ("error", None, "no zygote")),
        *(("listening", 2, ("127.0.0.1", 80, "tcp4", None)), 7),
    ]
    assert worker.addresses[1] == ("/run/x", None, "unix", None)


def test_ipv6_is_told_without_brackets(news):
    """As Node's `listening` does."""
    news.take([Refreshed(joined(info(1), urls=("https://[::1]:443",)).snapshot)])
    assert news.roster.workers[1].address == ("::1", 443, "tcp6", None)


def test_a_watch_is_called_once_when_its_condition_holds(news):
    """At once when it holds already; in line behind the events that made it true."""
    told = []
    record(news, told, "exit")
    news.take([event("listening", info(1))])
    news.when(lambda: not news.roster.workers, lambda: news.callbacks.put(told.append, "empty"))
    finish(news)
    assert told == []
    news.take([event("exit", info(1, "dead", exitcode=0))])
    news.take([event("listening", info(2)), event("exit", info(2, "dead", exitcode=0))])
    finish(news)
    assert told == [("exit", 1, 0, None), "empty", ("exit", 2, 0, None)]
    news.when(lambda: True, lambda: told.append("now"))
    assert told[-1] == "now"


def test_a_request_is_answered_in_the_line_of_callbacks(news):
    """Its function is called with the worker, in the callbacks' thread; what it raises comes back as an error."""
    news.take([event("online", info(1, "online"))])
    threads = set()

    def reply(worker, payload):
        threads.add(threading.current_thread().name)
        return [worker.id if worker else None, 6 // payload]

    assert news.call(reply, "worker:1", 2) == [1, 3]
    assert news.call(reply, "handle:1-abc", 3) == [None, 2]
    with pytest.raises(ClusterError, match="ZeroDivisionError"):
        news.call(reply, "worker:1", 0)
    assert threads == {"zcluster-callbacks"}


def test_who_waits_for_a_reply_of_a_closed_handle_is_told(news):
    """The callbacks have ended: nobody will reply."""
    release, held = threading.Event(), threading.Event()
    news.callbacks.put(lambda: (held.set(), release.wait(20)))
    assert held.wait(20)
    failed = []

    def ask():
        try:
            news.call(print, "worker:1", 1)
        except ClusterError as error:
            failed.append(str(error))

    asking = threading.Thread(target=ask)
    asking.start()
    until(lambda: news.callbacks._calls)
    news.callbacks.close(timeout_s=0.01)
    asking.join(20)
    release.set()
    assert failed == ["the handle was closed before it replied"]


def test_who_asks_when_too_many_callbacks_wait_is_told_at_once(news, monkeypatch):
    """The call that was dropped will never be made: its thread must not wait for it."""
    monkeypatch.setattr(callbacks, "WAITING_MAX", 1)
    release, held = threading.Event(), threading.Event()
    news.callbacks.put(lambda: (held.set(), release.wait(20)))
    assert held.wait(20)
    news.callbacks.put(print)
    with pytest.raises(PeerGone, match="too many callbacks wait"):
        news.call(print, "worker:1", 1)
    release.set()


def test_unknown_events_are_refused(news):
    """With the names of those there are."""
    with pytest.raises(ClusterError, match="no event 'exti'; events are setup, fork"):
        news.on("exti", print)
