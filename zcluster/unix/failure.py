"""Development (--reload): an app that does not load is replaced by a page that says why.

Invariant: without --reload an app that does not load is an error and nothing else; no traceback reaches a client.

The page is an app like any other. So a generation with broken code comes up, serves it, and is replaced when the code
is mended; nobody has to know of it but the two who load apps.
"""

import html
import logging
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final

from zcluster.config import Config
from zcluster.errors import AppError
from zcluster.unix.application import load

log = logging.getLogger("zcluster.reload")

REFRESH_S: Final = 1  # a browser asks again that often, until the code is mended
_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>{refresh}
<style>body{{font:16px/1.5 sans-serif;margin:2rem}}pre{{background:#f4f4f4;padding:1rem;overflow:auto}}</style>
</head><body><h1>{title}</h1><pre>{text}</pre>
<p>This page is shown because of <code>--reload</code>. It goes away when the code is mended.</p></body></html>
"""
_TITLE: Final = "The app does not load"


def load_or_show(config: Config) -> Callable[..., Any]:
    """Return the app, or with --reload the page that stands in for it. Raises `AppError` without."""
    if config.reload:
        # A .pyc is told from an old one by size and second: two edits in one second would show the first for ever.
        sys.dont_write_bytecode = True
    try:
        return load(config.app)
    except AppError as error:
        if not config.reload:
            raise
        log.error("clients are shown this until the code is mended: %s", error)
        return page(str(error))


def page(text: str) -> Callable[..., Iterable[bytes]]:
    """Return a WSGI app that answers every request with 500 and this text: HTML for browsers, plain for others."""

    def app(environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        is_browser = "text/html" in environ.get("HTTP_ACCEPT", "")
        # Only what can be asked again: a form that was sent is not sent a second time.
        again = f'<meta http-equiv="refresh" content="{REFRESH_S}">' if environ["REQUEST_METHOD"] == "GET" else ""
        shown = _PAGE.format(title=_TITLE, refresh=again, text=html.escape(text)) if is_browser else text + "\n"
        body = shown.encode(errors="backslashreplace")
        kind = "text/html" if is_browser else "text/plain"
        headers = [("Content-Type", f"{kind}; charset=utf-8"), ("Content-Length", str(len(body)))]
        start_response("500 Internal Server Error", [*headers, ("Cache-Control", "no-store")])
        return [body]

    return app
