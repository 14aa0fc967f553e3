"""Every worker answers on the same port; a worker that dies is reported and replaced."""

import os
from contextlib import suppress

from werkzeug import Request, Response

from zcluster import Cluster


@Request.application
def app(request: Request) -> Response:
    return Response(f"I am a worker running in process {os.getpid()}\n")


def main() -> None:
    address = f"127.0.0.1:{os.environ.get('PORT', 8000)}"
    with suppress(KeyboardInterrupt), Cluster("app:app", bind=address) as cluster:
        cluster.on("exit", lambda worker: print(f"Worker {worker.pid} died. ({worker.reason})", flush=True))
        print(f"{len(cluster.workers)} workers on {cluster.url}", flush=True)
        cluster.wait()


if __name__ == "__main__":
    main()
