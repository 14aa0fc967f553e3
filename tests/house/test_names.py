"""Names say what a thing is: none of the words that fit everything."""

import ast
import re

from sources import ROOT, sources

EMPTY_WORDS = {"util", "utils", "manager", "helper", "helpers", "handler", "handlers", "misc", "common", "stuff"}


def words(name: str) -> set[str]:
    """The words in a snake_case or CamelCase name."""
    return {word.lower() for word in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)}


def test_names_mean_something():
    """No module, class, function or method carries an empty word."""
    wrong = []
    for source in sources():
        if words(source.path.stem) & EMPTY_WORDS:
            wrong.append(str(source.path))
        for node in ast.walk(source.tree):
            if (
                isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
                and words(node.name) & EMPTY_WORDS
            ):
                wrong.append(f"{source.path}:{node.lineno} {node.name}")
    assert not wrong, "\n".join(wrong)


def test_the_words_are_found_in_any_spelling():
    """The search sees through snake_case and CamelCase."""
    assert words("SignalHandler") == {"signal", "handler"}
    assert words("_string_utils") == {"string", "utils"}
    assert words("HTTPManager") & EMPTY_WORDS


def test_every_module_says_what_it_is_for():
    """Every module opens with a docstring; those with code in them say more than one line or are small."""
    silent = [source.name for source in sources() if not ast.get_docstring(source.tree)]
    assert not silent, silent


def test_nothing_is_left_for_later():
    """No unfinished work is marked in the package."""
    mark = re.compile(r"\b(TODO|FIXME|XXX|HACK|NotImplementedError)\b")
    wrong = [f"{s.name}: {line}" for s in sources() for line in s.text.splitlines() if mark.search(line)]
    assert not wrong, "\n".join(wrong)


def test_tests_neither_sleep_nor_skip_nor_pretend():
    """Tests wait for conditions, run always, and use real sockets and processes."""
    # Spelled in pieces, so that this file does not find itself.
    banned = {
        "time." + "sleep(": "wait for a condition with a deadline",
        "pytest." + "skip": "a test that does not run proves nothing",
        "mark." + "skip": "a test that does not run proves nothing",
        "x" + "fail": "mend it",
        "unittest." + "mock": "use the real thing",
        "Magic" + "Mock": "use the real thing",
    }
    wrong = [
        f"{path.relative_to(ROOT)}: {text!r}: {instead}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for text, instead in banned.items()
        if text in path.read_text(encoding="utf-8")
    ]
    assert not wrong, "\n".join(wrong)


def test_every_test_says_what_it_proves():
    """Each test has a docstring."""
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and not ast.get_docstring(node)
    ]
    assert not wrong, "\n".join(wrong)
