"""The workers count together: the number is exact, whichever of them is killed."""

import os
from contextlib import suppress

from werkzeug import Request, Response

from zcluster import Cluster, Counter

requests = Counter("requests")


@Request.application
def app(request: Request) -> Response:
    total = requests.incr()
    return Response(f"Worker in process {os.getpid()} says cluster has responded to {total} requests.\n")


def main() -> None:
    address = f"127.0.0.1:{os.environ.get('PORT', 8000)}"
    with suppress(KeyboardInterrupt), Cluster("app:app", bind=address) as cluster:
        cluster.on("exit", lambda worker: print(f"Worker {worker.pid} died. ({worker.reason})", flush=True))
        print(f"{len(cluster.workers)} workers on {cluster.url}", flush=True)
        cluster.wait()
        print(f"{cluster.counters['requests']} requests in all", flush=True)


if __name__ == "__main__":
    main()
