"""Every worker answers on the same port; a worker that dies is reported and replaced."""

import os

from werkzeug import Request, Response

from zcluster import Cluster


@Request.application
def app(request: Request) -> Response:
    return Response(f"I am a worker running in process {os.getpid()}\n")


def main() -> None:
    with Cluster("app:app", bind="127.0.0.1:8000") as cluster:
        cluster.on("exit", lambda worker: print(f"Worker {worker.pid} died. ({worker.reason})", flush=True))
        print(f"{len(cluster.workers)} workers on {cluster.url}", flush=True)
        cluster.wait()


if __name__ == "__main__":
    main()
