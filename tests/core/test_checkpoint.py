"""Sealed files: what was written comes back, anything else is Damaged."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zcluster.core.checkpoint import Checkpoint, Damaged, Pointer, seal, unseal

CHECKPOINT = Checkpoint("aa", "bb", 3, {"requests": 41, "é": 2**64 - 1})
POINTER = Pointer("/dev/shm/x/ledger", "/dev/shm/x/locks", "bb", (1, 2))


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), min_size=1), st.integers(0, 2**64 - 1)))
@settings(max_examples=50, deadline=None)
def test_a_checkpoint_comes_back(totals):
    """Any names and totals survive the round trip."""
    value = Checkpoint("aa", "bb", 1, totals)
    assert unseal(seal(value), Checkpoint) == value


def test_a_pointer_comes_back():
    """So does a pointer."""
    assert unseal(seal(POINTER), Pointer) == POINTER


@pytest.mark.parametrize("value", [CHECKPOINT, POINTER])
def test_every_cut_and_every_flipped_bit_is_noticed(value):
    """Truncation at any length and one flipped bit in any byte raise Damaged."""
    raw = seal(value)
    for size in range(len(raw)):
        with pytest.raises(Damaged):
            unseal(raw[:size], type(value))
    for at in range(len(raw)):
        with pytest.raises(Damaged):
            unseal(raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :], type(value))
    with pytest.raises(Damaged):
        unseal(raw + b"\n", type(value))


def test_one_kind_is_not_taken_for_the_other():
    """A pointer in the place of a checkpoint is damage, however whole it is."""
    with pytest.raises(Damaged, match="not a checkpoint"):
        unseal(seal(POINTER), Checkpoint)
