"""docs/HTTP.md and the engine's part of ARCHITECTURE.md say what the code says: reasons, keys, defaults, states."""

import ast
import re
from collections.abc import Iterator

from sources import ROOT, sources

from zcluster.config import options
from zcluster.http import chunked, limits, wire
from zcluster.http.exchange import base_environ

HTTP = (ROOT / "docs" / "HTTP.md").read_text(encoding="utf-8")
ARCHITECTURE = (ROOT / "docs" / "ARCHITECTURE.md").read_text(encoding="utf-8")
# What PEP 3333 asks for; every server has it.
PEP_3333 = {
    *("REQUEST_METHOD", "SCRIPT_NAME", "PATH_INFO", "QUERY_STRING", "SERVER_NAME", "SERVER_PORT", "SERVER_PROTOCOL"),
    *("wsgi.version", "wsgi.url_scheme", "wsgi.input", "wsgi.errors"),
    *("wsgi.multithread", "wsgi.multiprocess", "wsgi.run_once"),
}


def section(page: str, heading: str) -> str:
    """What stands under a heading, its sub-headings included."""
    level = heading.partition(" ")[0]
    found = re.search(rf"(?ms)^{re.escape(heading)}$(.*?)(?=^#{{1,{len(level)}}} |\Z)", page)
    assert found, heading
    return found[1]


def rows(text: str) -> list[list[str]]:
    """The cells of all tables in a text, headings and rulers too."""
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in re.findall(r"(?m)^\|.*\|$", text)]


def texts(node: ast.expr) -> Iterator[str]:
    """Every string an expression may come to, in the forms that the engine uses for reasons."""
    if isinstance(node, ast.Constant):
        yield node.value
    elif isinstance(node, ast.IfExp):
        yield from texts(node.body)
        yield from texts(node.orelse)
    elif ast.unparse(node).startswith("_FAULTS["):
        yield from chunked._FAULTS.values()
    else:
        assert ast.unparse(node).endswith("refusal.reason"), ast.unparse(node)  # passed on, made elsewhere


def refusals() -> set[tuple[str, str]]:
    """Status ("none": no answer) and reason of everything that the engine refuses."""
    found = set()
    for source in sources():
        if not source.name.startswith("zcluster.http."):
            continue
        for node in ast.walk(source.tree):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func)
            if name == "Refusal":
                status, reason = node.args
                found |= {(ast.unparse(status), text) for text in texts(reason)}
            elif name.endswith("stats.refuse"):
                found |= {("none", text) for text in texts(node.args[0])}
    return found


def test_every_refusal_is_documented():
    """The table of HTTP.md has each reason of the code with its status, and no other."""
    told = [(status, reason.strip("`")) for status, reason, _ in rows(section(HTTP, "## What is refused"))[2:]]
    assert len(told) > 25
    assert len(told) == len(set(told))
    assert set(told) == refusals()


def keys_of_tls() -> set[str]:
    """What TLS adds to an environ; asking for it takes a connection."""
    tree = next(source.tree for source in sources() if source.name == "zcluster.http.tls")
    asked = next(node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "tls_environ")
    given = next(node.value for node in asked.body if isinstance(node, ast.Return))
    assert isinstance(given, ast.Dict)
    return {ast.literal_eval(key) for key in given.keys if key is not None}


def test_every_key_of_the_environ_is_documented():
    """The keys beyond PEP 3333 stand in HTTP.md, and no others."""
    table = section(HTTP, "## For the app: WSGI").partition("\n### ")[0]
    told = {key for row in rows(table) for key in re.findall(r"`([\w.]+)`", row[0])}
    given = {*base_environ("host", "80", (), threads=True, tls=True), *keys_of_tls()}
    assert told == given - PEP_3333


def test_defaults_in_the_prose_are_those_of_the_code():
    """Where HTTP.md gives the default of an option, in a table or behind its name, it is that default."""
    defaults = {flag: option.default for option in options() for flag in option.flags}
    tabled = [(row[0].strip("`"), row[1]) for row in rows(section(HTTP, "## Slow clients and time limits"))[2:]]
    assert len(tabled) == 4
    behind = re.findall(r"`(--[a-z-]+)`[a-z ]* \(([\d,]+)\)", HTTP)
    assert len(behind) > 1
    for flag, text in (*tabled, *behind):
        assert float(text.replace(",", "")) == defaults[flag], flag


def test_sizes_in_the_prose_are_those_of_the_code():
    """The bounds that HTTP.md names without an option are the engine's."""
    known = limits.Limits()
    sizes = (known.body_memory_bytes, known.head_bytes, known.response_memory_bytes, known.response_file_bytes)
    assert sizes == (256 << 10, 64 << 10, 1 << 20, 1 << 30)
    for text in ("up to 256 KiB", "more than 64 KiB", "1 MiB per connection", "up to 1 GiB"):
        assert text in HTTP, text
    assert (known.pipelined, known.linger_s, known.accept_pause_s, known.defer_s) == (16, 2.0, 0.1, 0.001)
    assert known.progress_bytes == 1 << 10


def test_the_states_of_a_connection_are_documented():
    """The picture of a connection in ARCHITECTURE.md has every state of the code, in its order."""
    numbers = [name for name, value in vars(wire).items() if name.isupper() and type(value) is int]
    told = re.findall(r"(?m)^([A-Z]{4,}) ", section(ARCHITECTURE, "## A connection and its owner"))
    assert [*told, "IN", "OUT"] == numbers
