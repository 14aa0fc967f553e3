"""Finding the application: every form that works, and for every form that does not the reason."""

import re
import sys

import pytest

from zcluster.core.codec import encode_control
from zcluster.core.messages import ImportFailed
from zcluster.errors import AppError
from zcluster.unix.application import TRACEBACK_MAX_CHARS, load

SHOP = """
import types

def app(environ, start_response):
    return [b"app"]

def application(environ, start_response):
    return [b"application"]

def factory(greeting="hello", *, times=1):
    def made(environ, start_response):
        return [greeting.encode() * times]
    return made

api = types.SimpleNamespace(v1=types.SimpleNamespace(app=app, factory=factory))
number = 5

def not_an_app():
    return 5

def broken(divisor):
    return 1 / divisor

def leaving():
    raise SystemExit("the configuration is missing")

class Lazy:
    @property
    def app(self):
        raise RuntimeError("the database is down")

lazy = Lazy()
"""


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module that can be imported; all modules of the test are forgotten at its end."""
    monkeypatch.syspath_prepend(str(tmp_path))
    known = set(sys.modules)

    def write(name, text):
        path = tmp_path / f"{name.replace('.', '/')}.py"
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
        return path

    yield write
    for name in set(sys.modules) - known:
        del sys.modules[name]


@pytest.fixture
def shop(module):
    return module("shop", SHOP)


def answer(app):
    return b"".join(app({}, None))


def failure(text):
    with pytest.raises(AppError) as caught:
        load(text)
    message = str(caught.value)
    encode_control(ImportFailed(0, message))  # it must survive the way to the launcher
    return message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("shop:app", b"app"),
        ("shop:application", b"application"),
        ("shop", b"app"),
        ("shop:", b"app"),
        ("shop:api.v1.app", b"app"),
        ("shop:factory()", b"hello"),
        ("shop:factory('good day')", b"good day"),
        ("shop:factory('a', times=3)", b"aaa"),
        ("shop:api.v1.factory(greeting='b')", b"b"),
    ],
)
def test_every_form(shop, text, expected):
    """Attribute, dotted attribute, factory, factory with literals, and the module alone."""
    assert answer(load(text)) == expected


def test_a_module_alone_may_call_it_application(module):
    """Without `app`, `application` is taken; in a package too."""
    module("pkg.web", "def application(environ, start_response): return [b'second']")
    assert answer(load("pkg.web")) == b"second"


def test_a_missing_module_is_told_with_where_we_looked(tmp_path, shop):
    """Also a missing parent, a missing submodule, and a module that is no package."""
    text = failure("shopp:app")
    assert "there is no module 'shopp' for the app 'shopp:app'" in text
    assert str(tmp_path) in text
    assert "MODULE:ATTRIBUTE" in text
    assert "Traceback" not in text
    assert "there is no module 'nopkg'" in failure("nopkg.web:app")
    assert "there is no module 'shop.web'" in failure("shop.web:app")
    assert "name the module, not the file" in failure("shop.py:app")
    assert "there is no module 'dir/shop'" in failure("dir/shop:app")


def test_a_missing_module_that_the_app_imports_is_the_one_named(module):
    """Not the app's module is missing but flaskk, and the traceback says in which line it is wanted."""
    path = module("pkg.web", "import os\nimport flaskk\n")
    text = failure("pkg.web:app")
    assert text.startswith("the app 'pkg.web:app' raised while it was imported:\nTraceback")
    assert "ModuleNotFoundError: No module named 'flaskk'" in text
    assert f'File "{path}", line 2' in text
    assert "importlib" not in text
    assert "application.py" not in text


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("int('x')", "ValueError: invalid literal for int"),
        ("raise ImportError('half installed')", "ImportError: half installed"),
        ("import sys\nsys.exit('no settings')", "SystemExit: no settings"),
        ("raise SystemExit", "SystemExit"),
        ("def f(:\n", "SyntaxError"),
        ("raise TypeError('wrong')", "TypeError: wrong"),
        ("def f(): f()\nf()", "RecursionError"),
        ("raise ValueError('\\udcff')", r"ValueError: \udcff"),
    ],
)
def test_whatever_it_raises_at_import_is_told(module, source, expected):
    """The app's own traceback from its first line on, whatever the exception."""
    path = module("bad", source)
    text = failure("bad:app")
    assert text.startswith("the app 'bad:app' raised while it was imported:\n")
    assert expected in text
    assert str(path) in text
    assert "application.py" not in text


def test_an_app_in_a_folder_named_importlib_keeps_its_traceback(module):
    """Only the frames of the import system itself are left out."""
    path = module("importlib_demo.web", "1 / 0")
    assert f'File "{path}", line 1' in failure("importlib_demo.web:app")


def test_a_long_traceback_is_cut_at_its_end_that_matters(module):
    """What comes last is the reason; the message stays small enough for a control message."""
    module("long", "raise ValueError('x' * 100_000 + ' the end')")
    text = failure("long:app")
    assert text.endswith(" the end")
    assert len(text) < TRACEBACK_MAX_CHARS + 200


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("shop:nothing", "module shop has no attribute 'nothing', wanted for the app 'shop:nothing'"),
        ("shop:api.v2.app", "an object of type 'SimpleNamespace' has no attribute 'v2'"),
        ("shop:number", "shop:number is an object of type 'int', which is not callable"),
        ("shop:not_an_app()", "shop:not_an_app() is an object of type 'int', which is not callable"),
        ("shop:number()", "number in 'shop:number()' is an object of type 'int', not a function that makes an app"),
        ("shop:nothing()", "module shop has no attribute 'nothing'"),
        ("shop:api", "shop:api is an object of type 'SimpleNamespace', which is not callable"),
        (":app", "does not name an app: its module is missing or relative"),
        (".shop:app", "does not name an app: its module is missing or relative"),
        ("", "does not name an app"),
    ],
)
def test_what_is_not_there_or_not_an_app(shop, text, expected):
    """The error names the object at which the search ended."""
    assert expected in failure(text)


@pytest.mark.parametrize(
    "expression",
    [
        "factory(", "factory()()", "app[0]", "1", "'app'", "app + app", "factory(open('x'))", "factory(name)",
        "factory(*[1])", "factory(**{'times': 2})", "factory({[]: 1})", " app", "lambda: 1", "app:app", "import os",
        "(" * 300 + ")" * 300,
    ],
)  # fmt: skip
def test_anything_but_a_name_or_a_call_with_literals_is_refused(shop, expression):
    """An import string is not a program: nothing in it is evaluated."""
    text = failure(f"shop:{expression}")
    assert re.search(r"is neither an attribute nor a call with literals; an app is MODULE:ATTRIBUTE", text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("shop:broken(0)", "raised while its factory ran:\nTraceback .*ZeroDivisionError"),
        ("shop:broken()", "raised while its factory ran:\n.*TypeError: .*divisor"),
        ("shop:leaving()", "raised while its factory ran:\n.*SystemExit: the configuration is missing"),
        ("shop:lazy.app", "raised when its attribute 'app' was read:\n.*RuntimeError: the database is down"),
    ],
)
def test_the_apps_code_that_runs_after_the_import_is_the_app_too(shop, text, expected):
    """A factory or a computed attribute that raises is told with its traceback."""
    assert re.search(expected, failure(text), re.DOTALL)


def test_a_module_without_an_app_says_which_names_were_tried(module):
    """`app` and `application`."""
    module("empty", "")
    assert "module 'empty' has neither 'app' nor 'application'" in failure("empty")
    module("lazy", "def __getattr__(name): raise OSError('no ' + name)")
    assert "OSError: no app" in failure("lazy")
