"""scripts/fuzz: a short run of each target, what it has found so far, and that it sees what is wrong."""

import random
import re
import sys

import msgspec
import pytest
from sources import ROOT

sys.path.insert(0, str(ROOT / "scripts"))

import fuzz
from fuzz_inputs import instance, mutated, smallest

from zcluster.core import messages as m
from zcluster.core.codec import encode, encode_control
from zcluster.core.mail import Members, Replayed

HELLOS = [
    ("ctl", 1, bytes([96 + id_]) * 16, False, encode(hello))
    for id_ in (1, 2)
    for info in [m.WorkerInfo(id_, id_ - 1, id_ - 1, 1, 1, 1000 + id_)]
    for hello in [m.Hello(bytes([96 + id_]) * 16, "worker", 1, info, f"worker:{id_}")]
]
MANY = encode(m.Beat(0, 0, 0, 0, 0, 0.0, 0.0, (), {"reason": 2**63}))
NO_TEXT = msgspec.Raw(b"\x81\xa1\xff\xc3")  # {"\xff": true}, which is no UTF-8
PROCEED = encode_control(m.Proceed())
# (target, input); what each has shown is said beside it.
FINDINGS = [
    # two workers' counts of refused requests were added to a number that no snapshot could carry
    ("bus", [*HELLOS, *(("ctl", 1, link, False, MANY) for _, _, link, _, _ in HELLOS)]),
    # arguments of `stop` that are no UTF-8 ended the master
    ("bus", [*HELLOS, ("ctl", 1, b"a" * 16, False, encode(m.Ask(1, "stop", NO_TEXT)))]),
    # descriptors that came with a bad datagram, before one, or with an empty one stayed open
    ("control", [(b"\x01\xc1", 1)]),
    ("control", [(PROCEED, 2), (b"\x01\xc1", 0)]),
    ("control", [(b"", 1)]),
    # an answer about 2**63 numbers was gone through one by one
    ("mail", [("linked", 0), ("heads", 2**63 - 1), ("ask", 0), encode(Replayed(1, 2**63 - 1))]),
    # of a choice in a variable (or in a flag) that was no UTF-8 it was said that this is a bug
    ("config", [None, None, {"ZCLUSTER_LOG_LEVEL": "\udcff"}, ["m:a"]]),
    # a name with more digits than Python converts
    (
        "mail",
        [("linked", 0), encode(Members(1, 1, {}, {}, 5)), ("worker:" + "9" * 5000, "message", 1), ("expire", 0)],
    ),
]


@pytest.mark.parametrize(("target", "value"), FINDINGS)
def test_what_was_found_stays_mended(target: str, value: object) -> None:
    """Each input that has broken something once."""
    with fuzz.TARGETS[target]() as running:
        error = fuzz.attempt(running, value)
        if error is not None:
            raise error


@pytest.mark.parametrize(
    ("target", "executions"), [("bus", 250), ("control", 400), ("mail", 250), ("config", 60), ("http", 250)]
)
def test_a_short_run_finds_nothing(target: str, executions: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Half a second of each, always the same inputs."""
    words = [target, "--seed", "6", "--seconds", "60", "--executions", str(executions)]
    assert fuzz.main(words) == 0, capsys.readouterr().out
    assert f"{executions} executions" in capsys.readouterr().out


def test_what_is_wrong_is_found_and_made_small(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A target that breaks at one byte: the seed and the smallest input are printed."""

    class Broken(fuzz.Control):
        def make(self, random: random.Random) -> bytes:
            return mutated(random, b"GET / HTTP/1.1\r\n", (b"!",))

        def run(self, value: bytes) -> None:
            assert b"!" not in value, "a mark"

    monkeypatch.setitem(fuzz.TARGETS, "control", Broken)
    assert fuzz.main(["control", "--seed", "1"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"FINDING at execution \d+ of seed 1: AssertionError", out)
    assert "(\"control\", b'!')," in out
    assert "verdict: 1 findings" in out


def test_a_seed_names_its_inputs() -> None:
    """The same seed makes the same inputs, of every target."""
    for kind in fuzz.TARGETS.values():
        target = kind()
        assert repr(target.make(random.Random("1/2"))) == repr(target.make(random.Random("1/2")))


def test_inputs_are_made_of_annotations_and_cut_down() -> None:
    """Any message can be made; what is not needed to fail is left out."""
    chance = random.Random(3)
    for _ in range(200):
        encode(instance(chance, m.Snapshot))
    assert smallest(list(range(100)), lambda less: 7 in less and 93 in less) == [7, 93]
