"""An app that tells what is around it: whose it is, where it is, and how much room there is."""

import json
import os
import subprocess
import tempfile
from pathlib import Path


def app(environ, start_response):
    size = len(environ["wsgi.input"].read())
    if environ["PATH_INFO"] == "/orphan":
        subprocess.run(["sh", "-c", "true & exit 0"], check=True)
        if tempfile.gettempdir().startswith("/dev/shm/"):  # not the machine's own, which nobody clears up
            (Path(tempfile.mkdtemp()) / "left").touch()
    umask = os.umask(0o077)
    os.umask(umask)
    memory = os.statvfs("/dev/shm")
    body = json.dumps({
        "ids": [*os.getresuid(), *os.getresgid()],
        "groups": os.getgroups(),
        "umask": umask,
        "folder": os.getcwd(),
        "environ": dict(os.environ),
        "size": size,
        "temporary": tempfile.gettempdir(),
        "memory_bytes": memory.f_frsize * memory.f_blocks,
        "used_bytes": memory.f_frsize * (memory.f_blocks - memory.f_bfree),
    }).encode()  # fmt: skip
    start_response("200 OK", [("Content-Type", "application/json"), ("Content-Length", str(len(body)))])
    return [body]
