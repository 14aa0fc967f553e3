"""The page that stands in for an app that does not load."""

import pytest
from werkzeug.test import Client

from zcluster.config import make_config
from zcluster.errors import AppError
from zcluster.unix.failure import load_or_show, page


def test_a_browser_and_a_program():
    """HTML that is escaped and asks again, or plain text; 500 for both."""
    client = Client(page("a <b> & \udcff"))
    seen = client.get("/x", headers={"Accept": "text/html,*/*"})
    assert seen.status_code == 500
    assert seen.content_type == "text/html; charset=utf-8"
    assert "a &lt;b&gt; &amp; \\udcff" in seen.text
    assert 'http-equiv="refresh"' in seen.text
    assert "refresh" not in client.post("/x", headers={"Accept": "text/html"}).text  # a form is not sent twice
    plain = client.get("/")
    assert (plain.status_code, plain.content_type) == (500, "text/plain; charset=utf-8")
    assert plain.text == "a <b> & \\udcff\n"
    assert plain.headers["Cache-Control"] == "no-store"


def test_only_in_development(tmp_path, monkeypatch, caplog):
    """Without --reload the error is raised; with it, it is logged and shown."""
    (tmp_path / "broken_app_of_a_test.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    name = "broken_app_of_a_test:app"
    with pytest.raises(AppError, match="ZeroDivisionError"):
        load_or_show(make_config(app=name))
    shown = Client(load_or_show(make_config(app=name, reload=True))).get("/").text
    assert "ZeroDivisionError" in shown
    assert "broken_app_of_a_test.py" in shown
    assert "until the code is mended" in caplog.text
