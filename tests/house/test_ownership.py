"""scripts/ownership: a short run of the long proof, and that it sees what is wrong."""

import contextlib
import re
import socket
import subprocess
import sys
import threading

import pytest
from left_behind import run_clean
from sources import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import ownership

ACTS = {"reset", "close", "half", "pipelined", "at once", "nothing"}


def test_two_thousand_pairs(tmp_path):
    """Requests whose clients reset, leave, pipeline or wait, against a real cluster: none hangs or is mixed up."""
    done = run_clean([ROOT / "scripts" / "ownership.py", "--pairs", "2000"], cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = dict(re.findall(r"(?m)^  ([a-z ]+?) +([\d,]+)$", done.stdout))
    assert rows.keys() == ACTS
    assert sum(int(count.replace(",", "")) for count in rows.values()) == 2000
    assert "verdict: none hung, none was mixed up, nothing was left behind" in done.stdout


def test_it_is_a_program():
    """It can be executed, is valid sh, and explains itself."""
    path = ROOT / "scripts" / "ownership"
    assert path.stat().st_mode & 0o111 == 0o111
    subprocess.run(["sh", "-n", path], check=True, timeout=10)
    text = subprocess.run(
        [sys.executable, f"{path}.py", "--help"], capture_output=True, text=True, check=True, timeout=20
    ).stdout
    assert "--pairs" in text


WHOLE = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b"


def answering(listener, answer):
    """Answer each connection with what `answer` makes of the request's path, and close it."""
    while True:
        try:
            sock, _ = listener.accept()
        except OSError:  # the test is over
            return
        with sock, contextlib.suppress(OSError):  # many of these clients reset their connection: it is what they do
            words = sock.recv(4096).split(b" ")
            if len(words) > 1:  # else it has left
                sock.sendall(answer(words[1]))


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (lambda path: WHOLE % (len(path), path[::-1]), "was answered with"),
        (lambda path: WHOLE % (2, b"ok"), "not the head"),
        (lambda path: b"", "ended before the answer"),
        (lambda path: WHOLE % (len(path), path[:-1]), "ended before the answer"),
        (lambda path: WHOLE % (len(path), path) + WHOLE % (len(path), path), "answer to"),
    ],
)
def test_what_is_wrong_is_seen(answer, said):
    """A server that mixes answers up, cuts or doubles them does not pass."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=answering, args=(listener, answer))
        thread.start()
        crowd = ownership.Crowd(listener.getsockname(), ownership.random.Random(1), 60, 5)
        crowd.run(lambda *_: None)
        listener.shutdown(socket.SHUT_RDWR)
        thread.join(20)
    assert not thread.is_alive()
    assert sum(crowd.done.values()) == 60
    assert any(said in text for text in crowd.wrong), crowd.wrong[:3]
