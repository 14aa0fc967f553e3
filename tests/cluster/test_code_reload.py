"""Development with --reload: an edit is enough, and what does not load is shown in the browser."""

import urllib.error
import urllib.request

from harness import running, wait_for

APP = """
import conf

def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [conf.TEXT.encode()]
"""


def seen(cluster):
    """Status and body, as a browser has them."""
    request = urllib.request.Request(cluster.url, headers={"Accept": "text/html"})
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_broken_and_mended(tmp_path):
    """From the first start on: broken code is a page with its traceback, mended code is the app again."""
    (tmp_path / "edited.py").write_text(APP)
    (tmp_path / "conf.py").write_text("TEXT = 1 / 0\n")
    (tmp_path / "extra.ini").write_text("")
    options = ("--reload", "--reload-extra-file=extra.ini", "--graceful-timeout=5")
    with running("edited:app", *options, workers=1, cwd=tmp_path, env={"PYTHONPATH": ""}) as cluster:
        cluster.wait_log(r"watcher pid=\d+: watching ")
        status, page = seen(cluster)
        assert status == 500
        assert "conf.py" in page
        assert "ZeroDivisionError" in page
        (tmp_path / "conf.py").write_text('TEXT = "mended"\n')
        wait_for(lambda: seen(cluster) == (200, "mended"), what="the app")
        (tmp_path / "edited.py").write_text("def (\n")
        wait_for(lambda: "SyntaxError" in seen(cluster)[1], what="the page")
        (tmp_path / "edited.py").write_text(APP)
        wait_for(lambda: seen(cluster) == (200, "mended"), what="the app, again")
        (tmp_path / "extra.ini").write_text("x")
        cluster.wait_log(r"extra\.ini changed: reloading")
        assert "--reload is for development" in cluster.end()
