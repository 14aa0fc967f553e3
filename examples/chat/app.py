"""A chat: what is posted to one worker is read at all of them.

POST /ROOM with `text=...` says something. GET /ROOM?after=T waits up to 20 s for what was said after the time T, the
first word of each line.
"""

import threading
import time
from collections import defaultdict, deque

from werkzeug import Request, Response

from zcluster import publish, subscribe

Line = tuple[float, str]
rooms: defaultdict[str, deque[Line]] = defaultdict(lambda: deque(maxlen=100))  # a chat is for those who are there
news = threading.Condition()


@subscribe("chat")
def heard(message: dict[str, str]) -> None:
    with news:
        rooms[message["room"]].append((float(message["at"]), f"{message['who']}: {message['text']}"))
        news.notify_all()


@Request.application
def app(request: Request) -> Response:
    room = request.path.strip("/") or "lobby"
    if request.method == "POST":
        who, text = request.form.get("who", "somebody")[:50], request.form.get("text", "")[:500]
        publish("chat", {"room": room, "who": who, "text": text, "at": f"{time.time():.6f}"}, reliable=True)
        return Response("said\n", 202)
    after = request.args.get("after", 0.0, type=float)

    def unread() -> list[Line]:
        return [line for line in rooms[room] if line[0] > after]

    with news:
        news.wait_for(unread, timeout=request.args.get("wait", 20.0, type=float))
        return Response("".join(f"{at:.6f} {text}\n" for at, text in unread()))
