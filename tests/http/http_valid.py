"""What must be served, however odd: bytes, what the environ must hold (None: nothing of that name), the body."""

from http_hostile import EVIL, HEAD, HOST, chunks, coded, field, get, host, sized, trailer
from http_rig import GET

ORIGIN = {"REQUEST_METHOD": "GET", "PATH_INFO": "/", "QUERY_STRING": "", "HTTP_HOST": "h"}
HELLO = b"hello"


def _path(target, path, query=""):
    return get(target), {"RAW_URI": target.decode(), "PATH_INFO": path, "QUERY_STRING": query}, b""


def _value(sent, seen):
    return field(b"X:" + sent), {"HTTP_X": seen}, b""


def _chunked(data, body=HELLO):
    return chunks(data), {"REQUEST_METHOD": "POST"}, body


GOOD_LINES = [
    (GET, ORIGIN, b""),
    (b"\r\n" + GET, ORIGIN, b""),
    *((get(b"/", method=name), {"REQUEST_METHOD": name.decode()}, b"") for name in (
        b"HEAD", b"PUT", b"DELETE", b"PATCH", b"OPTIONS", b"TRACE", b"PROPFIND", b"MKCOL", b"M-SEARCH",
        b"QUERY", b"BREW", b"X",
        b"A" * 200, b"A.B", b"VERSION-CONTROL", b"F_O", b"!#$%&'*+-.^_`|~09",
    )),
    (b"GET / HTTP/1.0\r\n\r\n", {"SERVER_PROTOCOL": "HTTP/1.0", "HTTP_HOST": None}, b""),
    (b"GET / HTTP/1.0\r\nHost: h\r\n\r\n", {"SERVER_PROTOCOL": "HTTP/1.0", "HTTP_HOST": "h"}, b""),
    _path(b"//double//a", "//double//a"),
    _path(b"/a/../b/./c/", "/a/../b/./c/"),
    _path(b"/%2e%2E/%2f", "/..//"),
    _path(b"/%41%7a%c3%A9", "/Az\xc3\xa9"),
    _path(b"/%00%ff%0d%0a", "/\0\xff\r\n"),
    _path(b"/%zz%4%", "/%zz%4%"),
    _path(b"/%25%32%35?%25", "/%25", "%25"),
    _path(b"/a+b;c=d,e!$&'()*:@~-._", "/a+b;c=d,e!$&'()*:@~-._"),
    _path(b'/"<>\\^`{|}[]', '/"<>\\^`{|}[]'),
    _path(b"/?", "/"),
    _path(b"/??", "/", "?"),
    _path(b"/a?b?c/d=/e", "/a", "b?c/d=/e"),
    _path(b"/?a=b&&=&c[]=%20+", "/", "a=b&&=&c[]=%20+"),
    _path(b"/http://h/a?b", "/http://h/a", "b"),
    _path(b"/*", "/*"),
    _path(b"/" + b"a" * (8190 - len(b"GET / HTTP/1.1")), "/" + "a" * (8190 - len("GET / HTTP/1.1"))),
    (get(b"*", method=b"OPTIONS"), {"PATH_INFO": "", "RAW_URI": "*", "HTTP_HOST": "h"}, b""),
    (get(b"*", b"Host:\r\n", b"OPTIONS"), {"PATH_INFO": "", "HTTP_HOST": ""}, b""),
    (get(b"http://o", method=b"OPTIONS"), {"PATH_INFO": "", "HTTP_HOST": "o"}, b""),
    (get(b"http://o/", method=b"OPTIONS"), {"PATH_INFO": "/", "HTTP_HOST": "o"}, b""),
    (get(b"http://o:81/a%20b?c"), {"PATH_INFO": "/a b", "QUERY_STRING": "c", "HTTP_HOST": "o:81"}, b""),
    (get(b"HTTPS://O"), {"PATH_INFO": "/", "QUERY_STRING": "", "HTTP_HOST": "O"}, b""),
    (get(b"http://o?a/b"), {"PATH_INFO": "/", "QUERY_STRING": "a/b", "HTTP_HOST": "o"}, b""),
    (get(b"http://[::1]:81//a"), {"PATH_INFO": "//a", "HTTP_HOST": "[::1]:81"}, b""),
    (get(b"http://o/", b"Host:\r\n"), {"HTTP_HOST": "o"}, b""),
    (b"GET http://o/ HTTP/1.0\r\n\r\n", {"HTTP_HOST": "o", "SERVER_PROTOCOL": "HTTP/1.0"}, b""),
]  # fmt: skip

GOOD_FIELDS = [
    *((host(b" " + value), {"HTTP_HOST": value.decode()}, b"") for value in (
        b"h", b"h:80", b"h:", b"h:0", b"h:00080", b"h:65535", b"[::1]", b"[::1]:80", b"[2001:DB8::1.2.3.4]",
        b"a_b.c-d", b"1.2.3.4",
        b"1.2.3.4:8000", b"xn--e1a", b"EXAMPLE.Com", b"example.com.", b"a%20b", b"a!$&'()*+;=~b",
    )),
    (host(b"h"), {"HTTP_HOST": "h"}, b""),
    (host(b" \t h \t "), {"HTTP_HOST": "h"}, b""),
    (get(b"/", b"hOsT: h\r\n"), {"HTTP_HOST": "h"}, b""),
    _value(b"", ""),
    _value(b" ", ""),
    _value(b"\t \t", ""),
    _value(b"a", "a"),
    _value(b" \ta\t ", "a"),
    _value(b" a \t b ", "a \t b"),
    _value(b" \xa0\x80\xff\x85 ", "\xa0\x80\xff\x85"),
    _value(b" a: b :c:", "a: b :c:"),
    _value(b" a,,b", "a,,b"),
    _value(b' "a\\"b', '"a\\"b'),
    _value(b" %00 \\r\\n", "%00 \\r\\n"),
    _value(b" " + b"a" * (8190 - 3), "a" * (8190 - 3)),
    (field(b"Accept:\r\nX:"), {"HTTP_ACCEPT": "", "HTTP_X": ""}, b""),
    (field(b"!#$%&'*+-.^`|~09aZ: x"), {"HTTP_!#$%&'*+_.^`|~09AZ": "x"}, b""),
    (field(b"a: 1\r\nB: 2"), {"HTTP_A": "1", "HTTP_B": "2"}, b""),
    (field(b"X: 1\r\nY: 2\r\nx: 3\r\nX:"), {"HTTP_X": "1, 3, ", "HTTP_Y": "2"}, b""),
    (field(b"Cookie: a=1\r\nX: y\r\ncookie: b=2; c=3"), {"HTTP_COOKIE": "a=1; b=2; c=3"}, b""),
    (field(b"X-User: me\r\nX_User: root"), {"HTTP_X_USER": "me"}, b""),
    (field(b"X_User: root\r\nX-User: me"), {"HTTP_X_USER": "me"}, b""),
    (field(b"X_User: root"), {"HTTP_X_USER": None}, b""),
    (field(b"Content_Length: 5\r\nTransfer_Encoding: chunked"), {"CONTENT_LENGTH": None}, b""),
    (field(b"Content-Type: a/b"), {"CONTENT_TYPE": "a/b", "HTTP_CONTENT_TYPE": None}, b""),
    (field(b"X-Content-Type: a/b"), {"CONTENT_TYPE": None, "HTTP_X_CONTENT_TYPE": "a/b"}, b""),
    (field(b"Expect:"), ORIGIN, b""),
    (field(b"Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: A"), ORIGIN, b""),
    (field(b"Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\nSec-WebSocket-Key: x"), ORIGIN, b""),
    (field(b"Connection: , keep-alive,,x "), ORIGIN, b""),
    (field(b"TE: trailers, deflate;q=0.5\r\nTrailer: X"), {"HTTP_TE": "trailers, deflate;q=0.5"}, b""),
    (get(b"/", HOST + b"".join(b"X-%d: %d\r\n" % (index, index) for index in range(99))), {"HTTP_X_98": "98"}, b""),
    (get(b"/", HOST + (b"X: " + b"a" * 8000 + b"\r\n") * 8), {"HTTP_X": ", ".join(["a" * 8000] * 8)}, b""),
]  # fmt: skip

# data that looks like ends, chunks and requests
TRICKY = b"\r\n\r\n0\r\n\r\n\r\n\r\n" + EVIL + b"0\r\n\r\n\r"

GOOD_BODIES = [
    (sized(b" 5"), {"CONTENT_LENGTH": "5"}, HELLO),
    (sized(b"5 \t"), {"CONTENT_LENGTH": "5"}, HELLO),
    (sized(b" 005"), {"CONTENT_LENGTH": "5"}, HELLO),
    (sized(b" " + b"0" * 40 + b"5"), {"CONTENT_LENGTH": "5"}, HELLO),
    (sized(b" 0", b""), {"CONTENT_LENGTH": "0"}, b""),
    (sized(b" 000", b""), {"CONTENT_LENGTH": "0"}, b""),
    (HEAD + b"\r\n", {"CONTENT_LENGTH": None}, b""),
    (sized(b" 5").replace(b"POST", b"GET"), {"REQUEST_METHOD": "GET"}, HELLO),
    (sized(b" 5").replace(b"POST", b"DELETE"), {"REQUEST_METHOD": "DELETE"}, HELLO),
    (sized(b" 5").replace(b"/1.1", b"/1.0"), {"CONTENT_LENGTH": "5"}, HELLO),
    (sized(b" 0\r\nContent-Type: a", b""), {"CONTENT_TYPE": "a"}, b""),
    (sized(b" %d" % len(TRICKY), TRICKY), {}, TRICKY),
    _chunked(b"0\r\n\r\n", b""),
    _chunked(b"000\r\n\r\n", b""),
    _chunked(b"5\r\nhello\r\n0\r\n\r\n"),
    _chunked(b"2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n"),
    _chunked(b"1\r\nh\r\n1\r\ne\r\n1\r\nl\r\n1\r\nl\r\n1\r\no\r\n0\r\n\r\n"),
    _chunked(b"000000000000000000000000005\r\nhello\r\n0000000000000000000000\r\n\r\n"),
    _chunked(b"a\r\nhellohello\r\n0\r\n\r\n", HELLO * 2),
    _chunked(b"A\r\nhellohello\r\n0\r\n\r\n", HELLO * 2),
    _chunked(b"aB\r\n" + b"x" * 0xAB + b"\r\n0\r\n\r\n", b"x" * 0xAB),
    _chunked(b"5;a\r\nhello\r\n0;b=c\r\n\r\n"),
    _chunked(b'5;a=b;c="d e;\\"\\\\\t\xe9"\r\nhello\r\n0\r\n\r\n'),
    _chunked(b'5; a = b ; c\t=\t"" ;d\r\nhello\r\n0; e\r\n\r\n'),
    _chunked(b"5;" + b"x" * 4000 + b"\r\nhello\r\n0\r\n\r\n"),
    _chunked(b"%x\r\n%b\r\n4\r\n\r\n\r\n\r\n0\r\n\r\n" % (len(TRICKY), TRICKY), TRICKY + b"\r\n\r\n"),
    (trailer(b"X-Checksum: 1"), {"HTTP_X_CHECKSUM": None}, HELLO),
    (trailer(b"X:\r\nY: \t a\xe9 \r\nX: 2\r\nServer-Timing: a;dur=1"), {"HTTP_X": None}, HELLO),
    (trailer(b"X_User: root"), {"HTTP_X_USER": None}, HELLO),
    (trailer(b"\r\n".join([b"X: y"] * 100)), {"HTTP_X": None}, HELLO),
    (coded(b" CHUNKED"), {"REQUEST_METHOD": "POST"}, b""),
    (coded(b"\tChunked \t"), {"REQUEST_METHOD": "POST"}, b""),
    (coded(b" chunked\r\nTE: x").replace(b"POST", b"GET"), {"REQUEST_METHOD": "GET"}, b""),
    (coded(b" chunked\r\nConnection: Upgrade\r\nUpgrade: h2c", b"5\r\nhello\r\n0\r\n\r\n"), {}, HELLO),
]

GOOD = GOOD_LINES + GOOD_FIELDS + GOOD_BODIES
