"""What scripts/mutants does by itself; mutmut, which does the rest, is not installed here."""

import sys

import pytest
from sources import ROOT, sources

sys.path.insert(0, str(ROOT / "scripts"))

import mutants


def test_properties_become_functions_that_can_be_changed():
    """The decorator goes, the property stays, and nothing else of a module is touched."""
    text = "class A:\n    @property\n    def x(self):\n        return 1\n\n    def y(self):\n        return 2\n"
    written = mutants.without_property_decorators(text)
    assert written == text.replace("    @property\n", "").replace("return 1\n", "return 1\n    x = property(x)\n")
    found: dict[str, type] = {}
    exec(written, found)
    assert found["A"]().x == 1


@pytest.mark.parametrize("source", [one for one in sources() if one.name.startswith("zcluster.core.")], ids=str)
def test_the_copy_of_the_core_is_the_core(source):
    """It compiles, and has as many lines as before: one goes and one comes for each property."""
    written = mutants.without_property_decorators(source.text)
    compile(written, str(source.path), "exec")
    assert len(written.splitlines()) == len(source.text.splitlines())


@pytest.mark.parametrize(
    ("before", "after", "is_wording"),
    [
        ('raise BadFrame(f"no {topic}") from None', "raise BadFrame(None) from None", True),
        ('    say("it has ended", 1)', '    say("XXit has endedXX", 1)', True),
        ('    say("it has ended", 1)', '    say("it has ended", 2)', False),
        ('    state = "ready"', '    state = "READY"', False),
        ('        f"there is no {name}",', "        None,", True),
        ("    at = now + wait", "    at = now - wait", False),
    ],
)
def test_what_only_changes_the_wording(before, after, is_wording):
    """Prose, with a blank in it, and the arguments of what is raised."""
    assert mutants.is_wording(before, after) is is_wording


def test_what_the_exit_codes_mean():
    """A signal is the end of a mutant that would not have ended."""
    assert [mutants.fate(code) for code in (0, 5, 33, None, 1, 3, 24, -9, 255)] == [
        *["survived"] * 3, "not run", *["killed"] * 2, *["timed out"] * 3,
    ]  # fmt: skip
