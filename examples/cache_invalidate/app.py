"""A cache in each worker, and any worker can drop a key from all of them.

GET /KEY reads through the cache, PUT /KEY changes the value and invalidates it everywhere.
"""

import os
import tempfile
import threading
from pathlib import Path

from werkzeug import Request, Response

from zcluster import publish, subscribe

store = Path(os.environ.get("STORE", tempfile.gettempdir())) / "cache_invalidate"  # stands for your database
cache: dict[str, str] = {}
lock = threading.Lock()
told = 0  # keys dropped so far: what was read before the last of them is not kept


@subscribe("invalidate")
def invalidate(key: str) -> None:
    global told
    with lock:
        told += 1
        cache.pop(key, None)


@Request.application
def app(request: Request) -> Response:
    key = request.path.strip("/").replace("/", "_") or "index"
    if request.method == "PUT":
        store.mkdir(exist_ok=True)
        (store / key).write_text(request.get_data(as_text=True))
        publish("invalidate", key, reliable=True).result(timeout=5)
        return Response("stored\n")
    value, before = cache.get(key), told
    found = value is not None
    if not found:
        path = store / key
        value = path.read_text() if path.exists() else "nothing"
        with lock:
            if told == before:
                cache[key] = value
    return Response(f"{value} ({'cached' if found else 'read'} by {os.getpid()})\n")
