"""Answers /N with N bytes of numbered lines, in one piece."""


def app(environ, start_response):
    size = int(environ["PATH_INFO"].strip("/") or "0")
    body, count = [], 0
    for n in range(size):
        line = b"%d\n" % n
        body.append(line)
        count += len(line)
        if count >= size:
            break
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(size))])
    return [b"".join(body)[:size]]
