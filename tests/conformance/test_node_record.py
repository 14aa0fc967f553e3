"""The table of docs/NODE.md is whole: each scenario is proven or refused with a reason, Node's side is recorded."""

import importlib.util
import re
import shutil

import pytest
from conformance_rig import HERE, ROOT

_spec = importlib.util.spec_from_file_location("conformance", ROOT / "scripts" / "conformance.py")
conformance = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(conformance)

QUICK = ("T13", "T16", "T17", "T41")  # of the programs that say the same each time


def test_every_scenario_has_a_row():
    """T01 to T60, each once, in order."""
    ids = [scenario.id for scenario in conformance.declared()[0]]
    assert ids == sorted(set(ids))
    assert {f"T{number:02}" for number in range(1, 61)} <= set(ids)


def test_every_row_is_proven_or_refused():
    """By a test that exists and says what it proves; or with a reason why there is nothing to prove."""
    for scenario in conformance.declared()[0]:
        assert bool(scenario.tests) != bool(scenario.not_offered), scenario.id
        for test in scenario.tests:
            assert conformance.sentence_of(test), test


def test_every_test_belongs_to_a_row():
    """No name says a scenario that is not in the table."""
    ids = {scenario.id.lower() for scenario in conformance.declared()[0]}
    assert set(conformance.tests_by_scenario()) <= ids


def test_every_program_is_recorded_and_declared():
    """What the Node programs can play is what the table says they do, and what the record has."""
    played = {(scenario.node, scenario.id) for scenario in conformance.played()}
    written = {
        (path.name, found)
        for path in (HERE / "node").glob("*.js")
        for found in re.findall(r"(?m)^(?:  |scenarios\.)(T\d\d[a-z]?)(?::| =) \{", path.read_text(encoding="utf-8"))
    }
    assert written == played
    assert {id_ for _, id_ in played} | {"version"} == set(conformance.recorded())
    assert all(entry["said"] for id_, entry in conformance.recorded().items() if id_ != "version")


@pytest.mark.parametrize("id_", QUICK)
def test_node_does_what_the_record_says(id_):
    """On a machine that has the Node of the record; the table itself needs none."""
    version = conformance.version_of() if shutil.which("node") else ""
    if version.partition(".")[0] == conformance.recorded()["version"].partition(".")[0]:
        (scenario,) = [scenario for scenario in conformance.played() if scenario.id == id_]
        assert conformance.play(scenario) == conformance.recorded()[id_]
