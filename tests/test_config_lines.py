"""The lines of keys in TOML: each one that is told is the right one."""

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zcluster.tomllines import key_lines

TRICKY = r'''
# zcluster.toml
app = "a:b"  # = not a key
bind = [
  ":80",  # ] "not the end
  'unix:/a]b', "#",
]
"quoted.key" = 3
a . "b=c" = { x = 1, y.z = [1, 2] }
text = """
[not-a-table]
key = 1
\""""" # two quotes belong to it
literal = \'\'\'it\'s
= 5 \'\'\'
many = [ { inner = 1 },
  { inner = 2 } ]
[tool.zcluster]
workers = 2
 [ tool . "z]" ]  # header
-1_k=-1
[[several]]
a=1
[[several]]
b=2
'''.replace("\\'", "'")


def test_strings_comments_and_brackets_are_seen_through():
    """Nothing inside a value is taken for a key, and keys are found however they are written."""
    tomllib.loads(TRICKY)
    begins = TRICKY.splitlines()
    found = {path: begins[line - 1].strip() for path, line in key_lines(TRICKY).items()}
    assert found == {
        ("app",): 'app = "a:b"  # = not a key',
        ("bind",): "bind = [",
        ("quoted.key",): '"quoted.key" = 3',
        **dict.fromkeys(
            [("a",), ("a", "b=c"), ("a", "b=c", "x"), ("a", "b=c", "y"), ("a", "b=c", "y", "z")],
            'a . "b=c" = { x = 1, y.z = [1, 2] }',
        ),
        ("text",): 'text = """',
        ("literal",): "literal = '''it's",
        ("many",): "many = [ { inner = 1 },",
        ("tool",): "[tool.zcluster]",
        ("tool", "zcluster"): "[tool.zcluster]",
        ("tool", "zcluster", "workers"): "workers = 2",
        ("tool", "z]"): '[ tool . "z]" ]  # header',
        ("tool", "z]", "-1_k"): "-1_k=-1",
        ("several",): "[[several]]",
        ("several", "a"): "a=1",
        ("several", "b"): "b=2",
    }


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("", {}),
        ("# nothing", {}),
        ("a = 1", {("a",): 1}),
        ("\r\n\r\na = 1\r\nb = '''\r\nc = 1'''\r\nd = 2\r\n", {("a",): 3, ("b",): 4, ("d",): 6}),
        ('"" = 1\n"\\u0061\\n" = 2', {("",): 1, ("a\n",): 2}),
        ('a = """"""\nb = """"x"""\nc = 1', {("a",): 1, ("b",): 2, ("c",): 3}),
        ('a = "\\\\"\nb = "\\""\nc = 1', {("a",): 1, ("b",): 2, ("c",): 3}),
        ("a = { t = [\n1] }\nb = 1", {("a",): 1, ("b",): 3}),
        ("[a]\n[b.c]", {("a",): 1, ("b",): 2, ("b", "c"): 2}),
    ],
)
def test_edges(text, lines):
    """Empty texts and keys, other line ends, escapes; an inline table over several lines says nothing of its keys."""
    tomllib.loads(text)
    assert key_lines(text) == lines


SCALARS = st.sampled_from(
    [
        *("1", "true", '"a"', '""', '"]"', '"\\""', '"\\\\"', "'\\'", "'#'", "07:32:00"),
        *('"""\n"""', '"""a"""""', '"""\\"""#\n]"""', "''''''", "'''\n=\n'''''", '""""\n["""', '"""\\\n   b"""'),
    ]
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda parts: "[ #]\n" + " ,\n# '\n".join(parts) + "\n]")
        | st.lists(inner, max_size=2).map(
            lambda parts: "{" + ", ".join(f"k{number} = {part}" for number, part in enumerate(parts)) + "}"
        )
    ),
    max_leaves=6,
)
KEYS = st.lists(st.sampled_from(["a", "b-1", '"="', "'] = #'", '"\\""', '""']), min_size=1, max_size=3).map(
    " . ".join
)
LINES = st.one_of(
    st.just("# [no] = 'header"),
    st.just("   "),
    st.tuples(KEYS, VALUES).map(" = ".join),
    KEYS.map("[ {} ] # ]".format),
    KEYS.map("[[{}]]".format),
)


@given(st.lists(LINES, max_size=8).map("\n".join))
def test_whatever_stands_above_a_key_its_line_is_right(above):
    """After any valid text a key has the line it stands in, and every other line that is told holds its key."""
    text = f"{above}\nlast = 1"
    try:
        table = tomllib.loads(text)
    except ValueError:
        return
    lines = key_lines(text)
    assert max(lines.values()) == text.count("\n") + 1
    assert next(path for path, line in lines.items() if line == max(lines.values()))[-1] == "last"
    assert {(key,) for key in table} <= set(lines)
    rows = text.split("\n")
    for path, line in lines.items():
        assert path[-1].replace('"', '\\"') in rows[line - 1], (path, line)
