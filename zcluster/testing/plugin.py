"""The pytest plugin: the fixtures `zcluster` and `zcluster_factory`, the marker and two ini options.

Every user of pytest who has installed zcluster imports this module at each start. Invariant: it imports nothing of
zcluster's, and nothing slow, before a fixture is used; and whatever a test did, its clusters are gone after it.
"""

from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Final

import pytest

if TYPE_CHECKING:
    from zcluster.testing.running import RunningCluster

    Factory = Callable[..., RunningCluster]

LOG_MAX_CHARS: Final = 64_000  # of a log in a report: its end; the whole is in the file that the report names

_MARKER: Final = (
    "zcluster('module:app', workers=2, **options): what the fixture 'zcluster' runs; app=... may also be a callable, "
    "options are those of zcluster.Cluster"
)
_clusters = pytest.StashKey["list[RunningCluster]"]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the ini options."""
    parser.addini("zcluster_app", "The app that the fixture 'zcluster' runs: MODULE:ATTRIBUTE", "string", "")
    parser.addini("zcluster_workers", "How many workers the clusters of tests have", "string", "2")


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", _MARKER)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Attach the logs of a test's clusters to the report of its failure."""
    report = yield
    if report.failed:
        for cluster in item.stash.get(_clusters, ()):
            text = cluster.log
            if len(text) > LOG_MAX_CHARS:
                text = f"... the end of {cluster.log_path}:\n{text[-LOG_MAX_CHARS:]}"
            report.sections.append((f"zcluster log ({cluster.log_path})", text))
    return report


@pytest.fixture
def zcluster_factory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator["Factory"]:
    """Start clusters: `zcluster_factory("module:app", workers=3, keep_alive_s=0.5)`; all are gone after the test.

    The app is an import string or any WSGI callable, also a function in the test. Options are those of
    `zcluster.Cluster`. Without an app it starts what the fixture `zcluster` would, with these options changed.
    """
    from zcluster.errors import ClusterError
    from zcluster.testing.running import RunningCluster

    made = request.node.stash.setdefault(_clusters, [])
    folder = None

    def make(app: Any = None, workers: "int | str | None" = None, **options: Any) -> RunningCluster:
        __tracebackhide__ = True
        nonlocal folder
        if workers is not None:
            options["workers"] = workers
        if app is None:
            app, marked = _marked(request)
            options = marked | options
        if "workers" not in options:
            options["workers"] = _ini_workers(request.config)
        folder = folder or tmp_path_factory.mktemp("zcluster")
        cluster = RunningCluster(app, log_path=folder / f"log{len(made)}", **options)
        made.append(cluster)
        return cluster.start()

    wrong: list[str] = []

    def end(cluster: RunningCluster) -> None:
        try:
            cluster.end()
        except ClusterError as error:
            wrong.append(str(error))

    try:
        yield make
    finally:
        with ExitStack() as ends:  # all of them, also when somebody presses Ctrl-C while the first one ends
            for cluster in made:
                ends.callback(end, cluster)
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)


@pytest.fixture
def zcluster(request: pytest.FixtureRequest, zcluster_factory: "Factory") -> "RunningCluster":
    """A running cluster for the app of the marker or of the ini option `zcluster_app`, gone after the test."""
    from zcluster.errors import ClusterError

    app, options = _marked(request)
    try:
        return zcluster_factory(app, **options)
    except ClusterError as error:
        wrong = f"the cluster did not start: {type(error).__name__}: {error}"
    pytest.fail(wrong, pytrace=False)  # not inside of except: its traceback would be shown, too


def _marked(request: pytest.FixtureRequest) -> tuple[Any, dict[str, Any]]:
    """The app and the options for a test: the nearest marker wins, one option at a time; the ini option is last."""
    app: Any = request.config.getini("zcluster_app")
    options: dict[str, Any] = {}
    for marker in reversed(list(request.node.iter_markers("zcluster"))):
        words = ("app", *marker.kwargs) if marker.args else tuple(marker.kwargs)
        if len(marker.args) > 1 or words.count("app") > 1:
            _refuse(request, f"@pytest.mark.zcluster takes one app and named options, but has {marker.args!r:.200}")
        options |= {name: value for name, value in marker.kwargs.items() if name != "app"}
        app = marker.args[0] if marker.args else marker.kwargs.get("app", app)
    if not app:
        _refuse(
            request,
            "no app is named: write @pytest.mark.zcluster('module:app') at the test, or zcluster_app = module:app "
            "into the ini file of pytest",
        )
    if not (callable(app) or isinstance(app, str)):
        _refuse(request, f"the app is {app!r:.100}, but should be an import string or a WSGI callable")
    return app, options


def _ini_workers(config: pytest.Config) -> "int | str":
    value: str = config.getini("zcluster_workers").strip()
    if value != "auto" and not (value.isascii() and value.isdigit()):
        pytest.fail(f"zcluster_workers = {value} in {config.inipath}: should be a number, or 'auto'", pytrace=False)
    return value if value == "auto" else int(value)


def _refuse(request: pytest.FixtureRequest, text: str) -> None:
    pytest.fail(f"{request.node.nodeid}: {text}", pytrace=False)
