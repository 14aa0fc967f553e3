"""Ask all workers at once: GET / says what each is doing, also when one of them does not answer."""

import os
import resource

from werkzeug import Request, Response

from zcluster import gather, subscribe, worker


@subscribe("status")
def status(_question: None) -> dict[str, object]:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return {"pid": os.getpid(), "cpu_s": round(used.ru_utime + used.ru_stime, 2), "rss_mib": used.ru_maxrss >> 10}


@Request.application
def app(request: Request) -> Response:
    replies, missing = gather("status", timeout=0.5)
    lines = [f"worker {id_}: {reply}" for id_, reply in sorted(replies.items())]
    lines += [f"worker {id_}: {why}" for id_, why in sorted(missing.items())]
    return Response("\n".join([f"asked by worker {worker.id}", *lines, ""]))
