"""A cache in each worker, and any worker can drop a key from all of them.

GET /KEY reads through the cache, PUT /KEY changes the value and invalidates it everywhere.
"""

import os
import tempfile
from pathlib import Path

from werkzeug import Request, Response

from zcluster import publish, subscribe

store = Path(os.environ.get("STORE", tempfile.gettempdir())) / "cache_invalidate"  # stands for your database
cache: dict[str, str] = {}


@subscribe("invalidate")
def invalidate(key: str) -> None:
    cache.pop(key, None)


@Request.application
def app(request: Request) -> Response:
    key = request.path.strip("/").replace("/", "_") or "index"
    if request.method == "PUT":
        store.mkdir(exist_ok=True)
        (store / key).write_text(request.get_data(as_text=True))
        publish("invalidate", key, reliable=True).result(timeout=5)
        return Response("stored\n")
    found = key in cache
    if not found:
        path = store / key
        cache[key] = path.read_text() if path.exists() else "nothing"
    return Response(f"{cache[key]} ({'cached' if found else 'read'} by {os.getpid()})\n")
