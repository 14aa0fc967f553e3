"""An app that is sent a SIGTERM in the last moment of the interpreter, when its handlers are gone."""

import os
import signal


class AtTheEnd:
    def __init__(self):
        self.kill, self.pid, self.number = os.kill, os.getpid, signal.SIGTERM

    def __del__(self):
        self.kill(self.pid(), self.number)


_keep = AtTheEnd()


def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % os.getpid()]
