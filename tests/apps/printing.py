"""Prints what its client asks for, in all the ways a program has."""

import os
import subprocess
import sys
import threading
from urllib.parse import parse_qs


def flood(path):
    """Print for ever; should that ever raise, write down why."""
    number = 0
    try:
        while True:
            number += 1
            print(f"line {number}")
    except BaseException as error:
        with open(path, "w") as file:
            file.write(repr(error))


def app(environ, start_response):
    asked = {name: values[0] for name, values in parse_qs(environ["QUERY_STRING"]).items()}
    text = asked.get("text", "nothing")
    match environ["PATH_INFO"]:
        case "/print":
            print(text)
        case "/many":
            for number in range(int(asked["count"])):
                print(f"{text} {number}")
        case "/error":
            sys.stderr.write(text + "\n")
        case "/child":
            subprocess.run(["echo", text], check=True)
        case "/abort":
            print(text, end="", flush=True)
            os.abort()
        case "/flood":
            threading.Thread(target=flood, args=(text,), daemon=True).start()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"%d" % os.getpid()]
