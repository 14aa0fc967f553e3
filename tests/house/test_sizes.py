"""Files and functions stay small enough to be read in one go."""

import ast

import pytest
from sources import ROOT, Source, sources

FILE_MAX_LINES = 400
FUNCTION_MAX_LINES = 60


def too_long(source: Source) -> list[str]:
    """What in this module exceeds a limit."""
    found = []
    lines = source.text.count("\n")
    if lines > FILE_MAX_LINES:
        found.append(f"{source.path}: {lines} lines")
    for node in ast.walk(source.tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            length = (node.end_lineno or first) - first + 1
            if length > FUNCTION_MAX_LINES:
                found.append(f"{source.path}:{first} {node.name}: {length} lines")
    return found


def test_modules_and_functions_are_short():
    """At most 400 lines a file and 60 a function in the package."""
    wrong = [text for source in sources() for text in too_long(source)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize(("lines", "wrong"), [(60, 0), (61, 1)])
def test_the_limit_counts_every_line(lines, wrong):
    """A function of 60 lines passes, one of 61 does not."""
    text = "def f():\n" + "    pass\n" * (lines - 1)
    assert len(too_long(Source(ROOT / "made-up.py", "made_up", text))) == wrong
