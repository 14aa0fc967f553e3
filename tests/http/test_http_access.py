"""The access log's lines: what stands in one, and what can never stand in one."""

import json
import os
import re
import time

import pytest
from access_rig import COMBINED, ENVIRON, FIELDS, OK
from http_rig import until
from hypothesis import given
from hypothesis import strategies as st

from zcluster.accessformat import ATOMS, parse_format
from zcluster.errors import ConfigError
from zcluster.http.access import AccessLog
from zcluster.http.sink import LINE_MAX_BYTES

IN_QUOTES = r'"((?:[^"\\]|\\.)*)"'
LINE = re.compile(rf"(\S+) - (\S+) (\[[^\]]+\]) {IN_QUOTES} (\d{{3}}) (\d+|-) {IN_QUOTES} {IN_QUOTES}")


def unescape(text):
    """The bytes that an escaped field stands for, as PEP 3333 text."""
    return re.sub(r"\\(?:x([0-9a-f]{2})|(.))", lambda m: chr(int(m[1], 16)) if m[1] else m[2], text)


@pytest.fixture
def line(make_log, tmp_path):
    """A function that gives the line for a request, without its end."""

    def line(format, environ=ENVIRON, sent=12, duration_s=1.25, status=OK, fields=FIELDS):
        log = make_log(format)
        log.note(dict(environ), status, fields, sent, duration_s)
        log.close()
        path = tmp_path / "access.log"
        text = path.read_text(encoding="utf-8")
        path.unlink()
        assert text.count("\n") == 1
        assert text.endswith("\n")
        assert not log.lost
        return text[:-1]

    return line


# ---- the format ----------------------------------------------------------------------------------------------------
def test_the_default_format_is_the_combined_one(line):
    """Byte for byte what gunicorn writes, which log readers know."""
    before = int(time.time())
    text = line(COMBINED)
    found = re.fullmatch(
        r'192\.0\.2\.7 - joe (\[.*\]) "GET /a%20b\?x=1 HTTP/1\.1" 200 12 "http://example\.com/" "curl/8\.5"', text
    )
    assert found, text
    at = time.mktime(time.strptime(found[1][:-7], "[%d/%b/%Y:%H:%M:%S"))
    assert before <= at <= time.time()
    assert found[1][-7:] == time.strftime(" %z]")


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        ("%(h)s", "192.0.2.7"),
        ("%(l)s", "-"),
        ("%(u)s", "joe"),
        ("%(r)s", "GET /a%20b?x=1 HTTP/1.1"),
        ("%(m)s", "GET"),
        ("%(U)s", "/a b"),
        ("%(q)s", "x=1"),
        ("%(H)s", "HTTP/1.1"),
        ("%(s)s", "200"),
        ("%(B)s", "12"),
        ("%(b)s", "12"),
        ("%(f)s", "http://example.com/"),
        ("%(a)s", "curl/8.5"),
        ("%(T)s", "1"),
        ("%(M)s", "1250"),
        ("%(D)s", "1250000"),
        ("%(L)s", "1.250000"),
        ("%({Host}i)s %({content-type}i)s %({X-None}i)s", "example.com text/plain -"),
        ("%({content-type}o)s %({X-None}o)s", "text/html -"),
        ("%({etag}o)s", r"\"v1\""),
        ("%({set-cookie}o)s", "a=1, b=2"),
        ("%({type}o)s", "-"),
        ("%({wsgi.url_scheme}e)s %({wsgi.multithread}e)s %({wsgi.input}e)s %({x}e)s", "http True - -"),
        ("100%% [%(s)s]", "100% [200]"),
        (
            "%(s)5s|%(s)-5s|%(D)9d|%(B)05d|%(a).4s|%(r)25s|",
            "  200|200  |  1250000|00012|curl|  GET /a%20b?x=1 HTTP/1.1|",
        ),
        ("plain", "plain"),
        ('"%(m)s"\t\\%(s)s \N{RIGHTWARDS ARROW}%%', '"GET"\t\\200 \N{RIGHTWARDS ARROW}%'),
    ],
)
def test_every_atom_of_gunicorn_s(line, format, expected):
    """Each atom gives the part of the request it names; absent ones are '-'."""
    assert line(format) == expected


def test_the_process_id(line):
    """In angle brackets, as gunicorn has it."""
    assert line("%(p)s") == f"<{os.getpid()}>"


def test_no_atom_is_left_out(line):
    """Every atom that the error message calls known can be used."""
    for atom in ATOMS:
        assert line(f"<%({atom})s>")


def test_nothing_sent_is_a_dash_or_a_zero(line):
    """%(b)s follows the common log format, %(B)s is a number."""
    assert line("%(b)s %(B)s", sent=0) == "- 0"


@pytest.mark.parametrize("credentials", ["Bearer abc", "Basic", "Basic ", "Basic !!!", "Basic OnNlY3JldA==", 7])
def test_no_user_is_a_dash(line, credentials):
    """Credentials without a user name, or of another kind, never fail and never show."""
    assert line("%(u)s", {**ENVIRON, "HTTP_AUTHORIZATION": credentials}) == "-"


@pytest.mark.parametrize(
    ("format", "message"),
    [
        ("%(x)s", r"no atom 'x'; known are h, l, u, t, r, .*, \{name\}i"),
        ("%({}i)s", "no atom"),
        ("%({a}x)s", "no atom"),
        ("%()s", "no atom ''"),
        ("50% %(h)s", "'% .*' is no atom; a percent sign is written %%"),
        ("%(h)s %", "'%' is no atom"),
        ("%h", "'%h' is no atom"),
        ("%(h", "is no atom"),
        ("%(h)d", r"%\(h\)d is no text: write %\(h\)s"),
        ("%(h)r", r"write %\(h\)s"),
        ("%(a)99999999s", "no padding"),
        ("%(D)#.+5d", "is no atom|no padding"),
        ("%(h)s\n%(s)s", "line break"),
        ("%(h)s\r", "line break"),
    ],
)
def test_a_wrong_format_is_explained(format, message):
    """Said at the start, with the atom at fault and what is known."""
    with pytest.raises(ConfigError, match=message) as raised:
        parse_format(format)
    assert "access_logformat" in str(raised.value)
    with pytest.raises(ConfigError):
        AccessLog("-", format)


def test_time_follows_the_zone(line, monkeypatch):
    """Local time with its distance from UTC, half hours and western ones included, months in English."""
    try:
        for zone, offset, iso in (("XXX-05:30", "+0530", "+05:30"), ("YYY03:30", "-0330", "-03:30")):
            monkeypatch.setenv("TZ", zone)
            time.tzset()
            assert re.fullmatch(
                rf"\[\d\d/[A-Z][a-z]{{2}}/\d{{4}}:\d\d:\d\d:\d\d {re.escape(offset)}\]", line("%(t)s")
            )
            at = json.loads(line("json"))["time"]
            assert re.fullmatch(rf"\d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\d{re.escape(iso)}", at)
    finally:
        monkeypatch.undo()
        time.tzset()


def test_time_goes_on(make_log, tmp_path):
    """The text is made once a second, and anew for each second."""
    log = make_log("%(t)s")
    first = int(time.time())
    log.note({}, OK, "", 0, 0.0)
    until(lambda: time.time() >= first + 1.01, "the next second")
    log.note({}, OK, "", 0, 0.0)
    log.close()
    lines = (tmp_path / "access.log").read_text().splitlines()
    assert len(set(lines)) == 2


# ---- JSON ----------------------------------------------------------------------------------------------------------
def test_json_has_names_and_numbers(line):
    """One object per line, what is a number is a number."""
    found = json.loads(line("json"))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d[+-]\d\d:\d\d", found.pop("time"))
    assert found == {
        "remote": "192.0.2.7", "user": "joe", "host": "example.com", "method": "GET", "target": "/a%20b?x=1",
        "protocol": "HTTP/1.1", "status": 200, "bytes": 12, "duration_s": 1.25, "referer": "http://example.com/",
        "user_agent": "curl/8.5", "pid": os.getpid(),
    }  # fmt: skip


def test_json_of_an_empty_request(line):
    """What is absent is the empty text, not a dash that looks like a value."""
    found = json.loads(line("json", {}, 0))
    assert {found[key] for key in ("remote", "user", "host", "method", "target", "referer", "user_agent")} == {""}
    assert found["bytes"] == 0


@given(st.text(st.characters(max_codepoint=0xFF)), st.text(st.characters(max_codepoint=0xFF)))
def test_json_gives_back_what_was_sent(referer, agent):
    """Any bytes in a field: one line of ASCII, valid JSON, the same text; bytes that are UTF-8 are read as that."""
    log = AccessLog("-", "json")
    log.note({**ENVIRON, "HTTP_REFERER": referer, "HTTP_USER_AGENT": agent}, OK, "", 1, 0.0)
    (text,) = log._lines
    assert text.isascii()
    assert text[:-1].isprintable()
    found = json.loads(text)
    for key, sent in (("referer", referer), ("user_agent", agent)):
        data = sent.encode("latin-1")
        try:
            assert found[key] == data.decode()
        except UnicodeDecodeError:
            assert found[key] == sent


# ---- what clients put into it --------------------------------------------------------------------------------------
@given(st.text(st.characters(max_codepoint=0xFF)), st.text(st.characters(max_codepoint=0xFF)), st.text())
def test_nobody_writes_a_line_of_his_own(referer, agent, target):
    """Whatever stands in a field, the line is one, printable ASCII, and its parts are where they belong."""
    log = AccessLog("-", COMBINED)
    environ = {**ENVIRON, "HTTP_REFERER": referer, "HTTP_USER_AGENT": agent, "RAW_URI": target}
    log.note(environ, OK, "", 1, 0.0)
    (text,) = log._lines
    assert text.isascii()
    assert text[:-1].isprintable()
    found = LINE.fullmatch(text[:-1])
    assert found, text
    assert unescape(found[7]) == referer
    assert unescape(found[8]) == agent
    assert found[5] == "200"


@pytest.mark.parametrize("char", [*map(chr, range(0x20)), '"', "\\", "\x7f", "\x80", "\x85", "\xa0", "\xad", "\xff"])
def test_each_odd_character_is_escaped(line, char):
    """Controls, quotes, backslashes and other bytes are told as nginx and Apache tell them."""
    expected = f"a\\{char}b" if char in '"\\' else f"a\\x{ord(char):02x}b"
    for key, format in (
        ("HTTP_USER_AGENT", "%(a)s"),
        ("REMOTE_ADDR", "\t%(h)s"),
        ("PATH_INFO", '"%(U)s"'),
        ("HTTP_X", "%({x}i)s"),
        ("some.key", "%({some.key}e)s"),
    ):
        assert expected in line(format, {**ENVIRON, key: f"a{char}b"})


def test_a_user_name_is_escaped(line):
    """It comes in base64, so the parser has not seen what is in it."""
    assert line("%(u)s %(s)s", {"HTTP_AUTHORIZATION": "Basic YQoiYjpj"}) == r"a\x0a\"b 200"  # a, LF, "b:c
    assert json.loads(line("json", {"HTTP_AUTHORIZATION": "Basic YQoiYjpj"}))["user"] == 'a\n"b'


@pytest.mark.parametrize("format", [COMBINED, "json"])
def test_a_long_line_is_cut_where_it_is_the_client_s(line, format):
    """At most 4096 bytes, so that a pipe takes it as a whole; the status and the form survive."""
    environ = {**ENVIRON, "RAW_URI": "/" + 8000 * "a", "HTTP_REFERER": 8000 * "\xe9", "HTTP_USER_AGENT": 8000 * '"'}
    text = line(format, environ)
    assert 100 < len(text) < LINE_MAX_BYTES
    if format == "json":
        found = json.loads(text)
        assert found["status"] == 200
        assert found["target"].startswith("/aaa")
        assert found["target"].endswith("...")
    else:
        found = LINE.fullmatch(text)
        assert found
        assert found[5] == "200"
        assert found[8].startswith(r"\"\"")


def test_a_format_of_too_many_fields_is_cut_at_the_end(line):
    """Sixty-four times a long field is no line; its beginning is."""
    text = line("%(s)s" + 64 * " %(a)64s \N{RIGHTWARDS ARROW}", {"HTTP_USER_AGENT": 9000 * "b"})
    assert len(text.encode()) < LINE_MAX_BYTES
    assert text.startswith("200 bbb")
    assert text.endswith(" ...")


@pytest.mark.parametrize("value", [None, 3, 2.5, b"bytes", object(), ["x"], "\ud800", "\u20ac"])
def test_what_an_application_leaves_in_its_environ_does_no_harm(line, value):
    """Other types, other characters: a line comes out, and nothing is raised."""
    keys = [key for key in ENVIRON if key.isupper()]
    for format in (COMBINED, "%(U)s %(q)s %(h)20s %({host}i)s %({wsgi.input}e)s"):
        assert "200" in line(format + " %(s)s", dict.fromkeys([*keys, "wsgi.input"], value))
    assert json.loads(line("json", dict.fromkeys(keys, value)))["status"] == 200


def test_an_application_may_empty_its_environ(line):
    """Nothing in it is needed."""
    assert LINE.fullmatch(line(COMBINED, {}))[4] == "- - -"
