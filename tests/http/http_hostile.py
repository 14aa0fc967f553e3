"""What must be refused: bytes, the status, and the reason as it is counted in `Stats.refused`."""

from http_rig import GET

HOST = b"Host: h\r\n"
HEAD = b"POST / HTTP/1.1\r\n" + HOST
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
EVIL = b"GET /smuggled HTTP/1.1\r\nHost: h\r\n\r\n"


def get(target, fields=HOST, method=b"GET"):
    """A request without a body."""
    return method + b" " + target + b" HTTP/1.1\r\n" + fields + b"\r\n"


def field(line):
    """A request with this field line."""
    return get(b"/", HOST + line + b"\r\n")


def host(value):
    """A request with this Host."""
    return get(b"/", b"Host:" + value + b"\r\n")


def sized(length, data=b"hello"):
    """A request with this Content-Length."""
    return HEAD + b"Content-Length:" + length + b"\r\n\r\n" + data


def coded(coding, data=b"0\r\n\r\n"):
    """A request with this Transfer-Encoding."""
    return HEAD + b"Transfer-Encoding:" + coding + b"\r\n\r\n" + data


def chunks(data):
    """A chunked request."""
    return CHUNKED + data


def trailer(line):
    """A chunked request with this trailer line."""
    return CHUNKED + b"5\r\nhello\r\n0\r\n" + line + b"\r\n\r\n"


def label(value):
    """A short test name for bytes."""
    text = repr(value)[:70]
    return text if isinstance(value, bytes) else None


LINE, ENDS, HEADER = "malformed request line", "bare CR or LF", "malformed header"
CONTROL, TARGET, VERSION = "control character", "malformed target", "HTTP version"
LENGTH, CODING = "malformed Content-Length", "malformed Transfer-Encoding"
BOTH, UNKNOWN = "Content-Length with Transfer-Encoding", "unknown Transfer-Encoding"
SIZE, CHUNK_END, TRAILER = "malformed chunk size", "malformed chunk end", "malformed trailer"

BAD_LINES = [
    (b"garbage\r\n\r\n", 400, LINE),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400, LINE),  # TLS on a plain port
    (b"\x00" * 20, 400, LINE),
    (b"GET\r\n\r\n", 400, LINE),
    (b"GET /\r\n\r\n", 400, LINE),  # HTTP/0.9
    (b"GET  / HTTP/1.1\r\nHost: h\r\n\r\n", 400, LINE),
    (b"GET /  HTTP/1.1\r\nHost: h\r\n\r\n", 400, LINE),
    (b"GET / HTTP/1.1 \r\nHost: h\r\n\r\n", 400, LINE),
    (b"GET / HTTP/1.1 x\r\nHost: h\r\n\r\n", 400, LINE),
    (b"GET / a HTTP/1.1\r\nHost: h\r\n\r\n", 400, LINE),
    (b" GET / HTTP/1.1\r\nHost: h\r\n\r\n", 400, LINE),
    (b"GET\t/ HTTP/1.1\r\nHost: h\r\n\r\n", 400, LINE),
    (b"GET /\tHTTP/1.1\r\nHost: h\r\n\r\n", 400, LINE),
    (b"GET / http/1.1\r\nHost: h\r\n\r\n", 400, LINE),
    (b"GET / HTP/1.1\r\nHost: h\r\n\r\n", 400, LINE),
    (b"GET / HTTP/1\r\nHost: h\r\n\r\n", 400, LINE),
    (b"GET / HTTP/1.\r\nHost: h\r\n\r\n", 400, LINE),
    (b"GET / HTTP/11.1\r\nHost: h\r\n\r\n", 400, LINE),
    (b"GET / HTTP/1.10\r\nHost: h\r\n\r\n", 400, LINE),
    (b"GET / HTTP/01.1\r\nHost: h\r\n\r\n", 400, LINE),
    (b"GET / HTTP/1,1\r\nHost: h\r\n\r\n", 400, LINE),
    (b"GET / HTTP/x.y\r\nHost: h\r\n\r\n", 400, LINE),
    (b"GET / HTTP /1.1\r\nHost: h\r\n\r\n", 400, LINE),
    (b"GET / HTTP/1.2\r\nHost: h\r\n\r\n", 505, VERSION),
    (b"GET / HTTP/0.9\r\nHost: h\r\n\r\n", 505, VERSION),
    (b"GET / HTTP/2.0\r\nHost: h\r\n\r\n", 505, VERSION),
    (b"GET / HTTP/3.0\r\nHost: h\r\n\r\n", 505, VERSION),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, VERSION),
    (b"\r\n\r\n" + GET, 400, LINE),
    (b"\r\n" * 50 + GET, 400, LINE),
    (b"G(T / HTTP/1.1\r\nHost: h\r\n\r\n", 400, LINE),
    (b"G@T / HTTP/1.1\r\nHost: h\r\n\r\n", 400, LINE),
    (b"GET: / HTTP/1.1\r\nHost: h\r\n\r\n", 400, LINE),
    (b'"GET" / HTTP/1.1\r\nHost: h\r\n\r\n', 400, LINE),
    (b"G\xc3T / HTTP/1.1\r\nHost: h\r\n\r\n", 400, LINE),
    (b"G\x00T / HTTP/1.1\r\nHost: h\r\n\r\n", 400, LINE),
    (b"G\x7fT / HTTP/1.1\r\nHost: h\r\n\r\n", 400, LINE),
    (get(b"/", method=b"get"), 501, "method in lower case"),
    (get(b"/", method=b"Get"), 501, "method in lower case"),
    (get(b"h:80", method=b"CONNECT"), 501, "CONNECT"),
    (get(b"/\xc3\xa9"), 400, LINE),
    (get(b"/?\xc3\xa9"), 400, LINE),
    (get(b"/a\x00b"), 400, LINE),
    (get(b"/a\x01b"), 400, LINE),
    (get(b"/a\x1fb"), 400, LINE),
    (get(b"/a\x7fb"), 400, LINE),
    (get(b"/a\tb"), 400, LINE),
    (get(b"/a#b"), 400, LINE),
    (get(b"/?a#b"), 400, LINE),
    (get(b"#"), 400, LINE),
    (get(b"a"), 400, TARGET),
    (get(b"?a"), 400, TARGET),
    (get(b"*"), 400, TARGET),
    (get(b"*", method=b"POST"), 400, TARGET),
    (get(b"**", method=b"OPTIONS"), 400, TARGET),
    (get(b"*?a", method=b"OPTIONS"), 400, TARGET),
    (get(b"h:80"), 400, TARGET),
    (get(b"h:80", method=b"OPTIONS"), 400, TARGET),
    (get(b"h"), 400, TARGET),
    (get(b"http:"), 400, TARGET),
    (get(b"http:/a"), 400, TARGET),
    (get(b"http://"), 400, TARGET),
    (get(b"http:///a"), 400, TARGET),
    (get(b"http://?a"), 400, TARGET),
    (get(b"http://:80/"), 400, TARGET),
    (get(b"http://u@h/a"), 400, TARGET),
    (get(b"http://u:p@h/a"), 400, TARGET),
    (get(b"http://h:x/a"), 400, TARGET),
    (get(b"http://[::1/a"), 400, TARGET),
    (get(b"http://h\\a/"), 400, TARGET),
    (get(b"http://h#f"), 400, LINE),
    (get(b"ftp://h/a"), 400, TARGET),
    (get(b"javascript:alert(1)"), 400, TARGET),
    (get(b"/" + b"a" * 8190), 414, "request line too long"),
    (b"GET /" + b"a" * 9000, 414, "request line too long"),
    (b"A" * 9000 + b" / HTTP/1.1\r\nHost: h\r\n\r\n", 414, "request line too long"),
]

BAD_ENDS = [
    (b"GET / HTTP/1.1\nHost: h\n\n", 400, ENDS),
    (b"GET / HTTP/1.1\nHost: h\r\n\r\n", 400, ENDS),
    (b"GET / HTTP/1.1\r\nHost: h\nX: y\r\n\r\n", 400, ENDS),
    (b"GET / HTTP/1.1\r\nHost: h\n\n" + EVIL, 400, ENDS),
    (b"GET / HTTP/1.1\r\nHost: h\n\r\n", 400, ENDS),
    (b"GET / HTTP/1.1\r\nHost: h\r\r\n\r\n", 400, ENDS),
    (b"GET / HTTP/1.1\r\nHost: h\r\n\n", 400, ENDS),
    (b"GET / HTTP/1.1\r\nHost: h\r\n\r\r\n\r\n", 400, ENDS),
    (b"GET / HTTP/1.1\rHost: h\r\r", 400, ENDS),
    (b"GET / HTTP/1.1\r\r\nHost: h\r\n\r\n", 400, ENDS),
    (b"GET / HTTP/1.1\r\nHost: h\rX: y\r\n\r\n", 400, ENDS),
    (b"\n" + GET, 400, ENDS),
    (b"\r" + GET, 400, ENDS),
    (b"\r\n\n" + GET, 400, ENDS),
]

BAD_FIELDS = [
    (b"GET / HTTP/1.1\r\n Host: h\r\n\r\n", 400, HEADER),
    (b"GET / HTTP/1.1\r\n\tHost: h\r\n\r\n", 400, HEADER),
    (b"GET / HTTP/1.1\r\n X: a\r\nHost: h\r\n\r\n", 400, HEADER),
    (get(b"/", b"Host : h\r\n"), 400, HEADER),
    (get(b"/", b"Host\t: h\r\n"), 400, HEADER),
    (field(b"Content-Length : 5"), 400, HEADER),
    (field(b"Transfer-Encoding : chunked"), 400, HEADER),
    (field(b"X: a\r\n b"), 400, HEADER),
    (field(b"X: a\r\n\tb"), 400, HEADER),
    (field(b"X:\r\n b"), 400, HEADER),
    (field(b"X: a\r\n "), 400, HEADER),
    (field(b"X: a\r\n X: b"), 400, HEADER),
    (field(b"X"), 400, HEADER),
    (field(b"Accept"), 400, HEADER),
    (field(b": x"), 400, HEADER),
    (field(b":"), 400, HEADER),
    (field(b"X(: x"), 400, HEADER),
    (field(b"X Y: x"), 400, HEADER),
    (field(b"X[0]: x"), 400, HEADER),
    (field(b"X/Y: x"), 400, HEADER),
    (field(b'"X": x'), 400, HEADER),
    (field(b"X@Y: x"), 400, HEADER),
    (field(b"X_Y(: x"), 400, HEADER),
    (field(b"X\xe9: x"), 400, HEADER),
    (field(b"X\x00: x"), 400, CONTROL),
    (field(b"X\x01: x"), 400, CONTROL),
    (field(b"X\x7f: x"), 400, CONTROL),
    (field(b"X: a\x00b"), 400, CONTROL),
    (field(b"X: \x00"), 400, CONTROL),
    *((field(b"X: a%cb" % byte), 400, CONTROL) for byte in (*range(1, 9), *range(11, 13), *range(14, 32), 127)),
    (field(b"X: " + b"a" * 8190), 431, "header field too large"),
    (field(b"X" * 8190 + b": a"), 431, "header field too large"),
    (get(b"/", HOST + b"X: a\r\n" * 100), 431, "too many header fields"),
    (get(b"/", HOST + b"".join(b"X-%d: a\r\n" % index for index in range(5000))), 431, "too many header fields"),
    (get(b"/", HOST + (b"X: " + b"a" * 8000 + b"\r\n") * 9), 431, "head too large"),
    (HEAD + b"Expect: 200-ok\r\nContent-Length: 1\r\n\r\n", 417, "unknown expectation"),
    (HEAD + b"Expect: 100-continue, more\r\nContent-Length: 1\r\n\r\n", 417, "unknown expectation"),
]

BAD_HOSTS = [
    (b"GET / HTTP/1.1\r\n\r\n", 400, "no Host"),
    (get(b"/", b"X-Host: h\r\n"), 400, "no Host"),
    (get(b"/", b"X: y\r\nAccept: */*\r\n"), 400, "no Host"),
    (get(b"http://h/", b""), 400, "no Host"),
    (get(b"*", b"", b"OPTIONS"), 400, "no Host"),
    (host(b""), 400, "malformed Host"),
    (host(b" \t"), 400, "malformed Host"),
    (b"GET / HTTP/1.0\r\nHost:\r\n\r\n", 400, "malformed Host"),
    (get(b"/", HOST + HOST), 400, "repeated Host"),
    (get(b"/", HOST + b"host: evil\r\n"), 400, "repeated Host"),
    (get(b"/", HOST + b"X: y\r\nHOST:\r\n"), 400, "repeated Host"),
    (b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n", 400, "repeated Host"),
    (get(b"http://h/", HOST + HOST), 400, "repeated Host"),
    *(
        (host(b" " + value), 400, "malformed Host")
        for value in (
            b"a, b", b"a,b", b"a b", b"a\tb", b"a/b", b"a?b", b"a#b", b"a\\b", b"u@h", b"http://h", b"h:80x",
            b"h:-1", b"h:+1",
            b"h:8 0", b"h: 80", b"h :80", b"h:80:80", b":80", b"h:65536", b"h:99999", b"h:000080", b"[::1",
            b"::1", b"[]", b"[::1]x",
            b"[:::]", b"[1.2.3.4]", b"[fe80::1%25eth0]", b"[12345::]", b"a%", b"a%2", b"a%zz", b"<h>", b'"h"',
            b"h|", b"h^", b"{h}",
            b"\xe9", b"h\xff", b"@", b"*,*",
        )
    ),
    (b"GET / HTTP/1.0\r\nHost: a b\r\n\r\n", 400, "malformed Host"),
    (get(b"http://h/", b"Host: a b\r\n"), 400, "malformed Host"),
    (get(b"*", b"Host: a b\r\n", b"OPTIONS"), 400, "malformed Host"),
]  # fmt: skip

BAD_FRAMING = [
    (HEAD + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400, BOTH),
    (HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n", 400, BOTH),
    (HEAD + b"Transfer-Encoding: chunked\r\nContent-Length: 0\r\n\r\n0\r\n\r\n", 400, BOTH),
    (HEAD + b"Transfer-Encoding: chunked\r\nContent-Length:\r\n\r\n0\r\n\r\n", 400, BOTH),
    (HEAD + b"Transfer-Encoding: x\r\nContent-Length: 5\r\n\r\nhello", 400, BOTH),
    (HEAD + b"Transfer-Encoding:\r\nContent-Length: 5\r\n\r\nhello", 400, BOTH),
    (HEAD + b"tRANSFER-eNCODING: CHUNKED\r\ncONTENT-lENGTH: 5\r\n\r\n0\r\n\r\n", 400, BOTH),
    (HEAD + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", 400, "repeated Content-Length"),
    (HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello", 400, "repeated Content-Length"),
    (HEAD + b"Content-Length: 5\r\nX: y\r\ncontent-length: 0\r\n\r\nhello", 400, "repeated Content-Length"),
    *(
        (sized(value), 400, LENGTH)
        for value in (
            b" 5, 5", b" 5,5", b" 5,", b" ,5", b" +5", b" -5", b" -0", b" 0x5", b" 5h", b" 0b1", b" 1_0",
            b" 5 5", b" 5\t5", b"", b" ",
            b" five", b" 5.0", b" 5e0", b" 5;a", b' "5"', b" \xb2", b" \xb15", b" 5\xa0", b" \xa05", b" 5\x85",
            b" 18446744073709551616", b" 18446744073709551621", b" 1" + b"0" * 30, b" " + b"9" * 8000,
        )
    ),
    *(
        (sized(value), 413, "body too large")
        for value in (b" 1073741825", b" 999999999999999999", b" 9223372036854775808", b" 18446744073709551615")
    ),
    *((coded(value), 501, UNKNOWN) for value in (
        b" gzip", b" identity", b" gzip, chunked", b" xchunked", b" chunkedx", b" chunked-x",
        b" gzip;q=1, chunked", b" x",
        b" deflate, gzip, chunked", b" chunke", b" identity, chunked",
    )),
    *((coded(value), 400, CODING) for value in (
        b" chunked, chunked", b" chunked, gzip", b" chunked, identity", b" chunked,", b" ,chunked",
        b" chunked,,chunked", b"", b" ",
        b" ,", b" chunked;q=1", b" chunked;", b" chunked ;a=b", b" chun ked", b' "chunked"',
        b" chunked;a, chunked", b" chunked x",
        b" chunked\xa0", b" \xa0chunked", b" chunked\x85", b" gzip;a=b;, (chunked)", b" chunked, gzip, chunked",
    )),
    (coded(b" \x0bchunked"), 400, CONTROL),
    (coded(b" chunked\x0c"), 400, CONTROL),
    (coded(b" chunked\x00"), 400, CONTROL),
    (coded(b" chunked\r\nTransfer-Encoding: identity"), 400, CODING),
    (coded(b" chunked\r\nTransfer-Encoding: chunked"), 400, CODING),
    (coded(b" gzip\r\nTransfer-Encoding: chunked"), 501, UNKNOWN),
    (coded(b" chunked").replace(b"/1.1", b"/1.0"), 400, "Transfer-Encoding on HTTP/1.0"),
    (coded(b" gzip").replace(b"/1.1", b"/1.0"), 400, "Transfer-Encoding on HTTP/1.0"),
    (coded(b"\r\n chunked"), 400, HEADER),
]  # fmt: skip

BAD_CHUNKS = [
    *((chunks(size + b"\r\nhello\r\n0\r\n\r\n"), 400, SIZE) for size in (
        b"", b"0x5", b"0X5", b"x5", b"+5", b"-5", b"-0", b"5_", b"0_5", b" 5", b"5 ", b"5 ;a", b"\t5", b"5\t",
        b"5h", b"5.", b"5,5", b"5 5",
        b"five", b";a", b"5:", b"\xb5", b"5\x00", b"5\x0b", b"10000000000000000", b"FFFFFFFFFFFFFFFFF",
        b"1" + b"0" * 100,
        b"5;", b"5;;a", b"5;a=", b"5;=b", b"5;a b", b"5;a=b c", b'5;a="b', b'5;a="b"c', b'5;a="\\"', b"5;\x00",
        b"5;a=\x01", b'5;a="\x7f"',
        b"5;a\rb", b"5;a=\r", b"5;(", b"5;\xe9", b"5;a=\xe9", b"5;" + b"x" * 5000, b"5;" + b"x" * 100_000,
    )),
    (chunks(b"5;a\nX\r\nhello\r\n0\r\n\r\n"), 400, SIZE),
    (chunks(b"5\nhello\r\n0\r\n\r\n"), 400, SIZE),
    (chunks(b"5\rhello\r\n0\r\n\r\n"), 400, SIZE),
    (chunks(b"5\r\r\nhello\r\n0\r\n\r\n"), 400, SIZE),
    (chunks(b"\n5\r\nhello\r\n0\r\n\r\n"), 400, SIZE),
    (chunks(b"FFFFFFFFFFFFFFFFF"), 400, SIZE),
    (chunks(b"hello"), 400, SIZE),
    (chunks(EVIL), 400, SIZE),
    (chunks(b"5;" + b"x" * 100_000), 400, SIZE),
    (chunks(b"5\r\nhello\n0\r\n\r\n"), 400, CHUNK_END),
    (chunks(b"5\r\nhello\r0\r\n\r\n"), 400, CHUNK_END),
    (chunks(b"5\r\nhello0\r\n\r\n"), 400, CHUNK_END),
    (chunks(b"5\r\nhelloo\r\n0\r\n\r\n"), 400, CHUNK_END),
    (chunks(b"5\r\nhelloo"), 400, CHUNK_END),
    (chunks(b"5\r\nhello\r\r\n0\r\n\r\n"), 400, CHUNK_END),
    (chunks(b"5\r\nhello \r\n0\r\n\r\n"), 400, CHUNK_END),
    (chunks(b"5\r\nhell\r\n0\r\n\r\n"), 400, CHUNK_END),
    (chunks(b"5\r\nhello\r\n\r\n0\r\n\r\n"), 400, SIZE),
    (chunks(b"7FFFFFFFFFFFFFFF\r\n"), 413, "body too large"),
    (chunks(b"FFFFFFFFFFFFFFFF\r\n"), 413, "body too large"),
    (chunks(b"0000040000001\r\n"), 413, "body too large"),
    (chunks(b"5\r\nhello\r\n3FFFFFFC\r\n"), 413, "body too large"),
    (chunks((b"1;" + b"x" * 4000 + b"\r\nx\r\n") * 17), 400, "chunk overhead"),
    *((trailer(line), 400, TRAILER) for line in (
        b"X : y", b" X: y", b"X", b": y", b"X(: y", b"X\xe9: y", b"X: a\r\n b", b"X: a\x00", b"X: a\x7f",
        b"X: a\x0bb", b"X: y\n",
        b"X: y\rZ: a", b"\n", b"X\x00: y", b"\tX: y",
    )),
    *((trailer(name + b": 7"), 400, "forbidden trailer") for name in (
        b"Content-Length", b"content-length", b"CONTENT-LENGTH", b"Content_Length", b"Transfer-Encoding",
        b"Host", b"Connection", b"TE",
        b"Trailer", b"Upgrade", b"Keep-Alive", b"Expect", b"Max-Forwards", b"Forwarded", b"Via",
        b"X-Forwarded-For", b"X-Forwarded-Host",
        b"X-Forwarded-Proto", b"X-Real-IP", b"Authorization", b"Proxy-Authorization", b"Cookie",
        b"Content-Type", b"Content-Encoding",
        b"Content-Range", b"Range", b"If-Match", b"If-None-Match", b"Cache-Control", b"Pragma",
    )),
    (trailer(b"X-Good: 1\r\nHost: evil"), 400, "forbidden trailer"),
    (trailer(b"X: y\r\n" * 100 + b"X: y"), 431, "too many trailer fields"),
    (trailer((b"X: " + b"a" * 8000 + b"\r\n") * 9), 431, "too many trailer fields"),
    (trailer(b"X: " + b"a" * 8190), 431, "trailer field too large"),
    (chunks(b"0\r\nX: " + b"a" * 10_000), 431, "trailer field too large"),
]  # fmt: skip

BAD = BAD_LINES + BAD_ENDS + BAD_FIELDS + BAD_HOSTS + BAD_FRAMING + BAD_CHUNKS
