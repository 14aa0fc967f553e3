"""Behind proxies: whom to believe, how far, and what."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.test import EnvironBuilder, run_wsgi_app
from werkzeug.wrappers import Request, Response

from zcluster.errors import ConfigError
from zcluster.http.proxies import HOPS_MAX, behind_proxies
from zcluster.trustedpeers import parse_trusted_peers

PROXY = "10.0.0.1"
CLIENT = "198.51.100.7"
SPOOFED = "203.0.113.66"


def ask(allow, headers=(), peer=PROXY):
    """The environ that an application sees for a request of this peer with these header fields."""
    seen = {}

    def app(environ, start_response):
        seen.update(environ)
        return Response("ok")(environ, start_response)

    builder = EnvironBuilder(headers=list(dict(headers).items()), base_url="http://inner:8000/")
    environ = {**builder.get_environ(), "REMOTE_ADDR": peer, "REMOTE_PORT": "4711"}
    _, status, _ = run_wsgi_app(behind_proxies(app, allow), environ)
    assert status == "200 OK"
    return seen


def address(allow, chain, peer=PROXY):
    """The client's address as an application sees it."""
    return ask(allow, {"X-Forwarded-For": chain}, peer)["REMOTE_ADDR"]


# ---- who -----------------------------------------------------------------------------------------------------------
def test_without_the_option_nothing_happens():
    """Not even a wrapper: an application with a ProxyFix of its own goes on as before."""

    def app(environ, start_response):
        return []

    assert behind_proxies(app, "") is app
    assert behind_proxies(app, " ") is app
    assert behind_proxies(app, PROXY) is not app


@pytest.mark.parametrize(
    ("allow", "peer", "believed"),
    [
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.1", "10.0.0.2", False),
        ("10.0.0.0/8", "10.255.255.255", True),
        ("10.0.0.0/8", "11.0.0.0", False),
        ("10.0.0.1, 192.0.2.0/24", "192.0.2.9", True),
        ("::1", "::1", True),
        ("::1", "0:0:0:0:0:0:0:1", True),
        ("2001:db8::/32", "2001:db8:ffff::1", True),
        ("2001:db8::/32", "2001:db9::1", False),
        ("fe80::/10", "fe80::1%eth0", True),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("10.0.0.0/8", "::ffff:10.0.0.1", True),
        ("::ffff:10.0.0.0/104", "10.9.9.9", True),
        ("0.0.0.0/0", "::1", False),
        ("::/0", "10.0.0.1", False),
        ("10.0.0.1", "", False),
        ("unix", "", True),
        ("unix", "10.0.0.1", False),
        ("*", "", True),
        ("*", "10.0.0.1", True),
        ("*", "::1", True),
        ("10.0.0.1", "no address", False),
    ],
)
def test_who_is_believed(allow, peer, believed):
    """Addresses, networks, Unix sockets, everybody: exactly who was named, in whatever spelling."""
    assert address(allow, CLIENT, peer) == (CLIENT if believed else peer)


def test_what_strangers_claim_does_not_arrive():
    """No field about a client from somebody who is no proxy, under any of its names; all other fields stay."""
    claims = {
        "X-Forwarded-For": SPOOFED,
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "evil.example",
        "X-Forwarded-Port": "1",
        "X-Forwarded-Prefix": "/evil",
        "X-Forwarded-Client-Cert": "Subject=admin",
        "X-Forwarded-Ssl": "on",
        "X-Forwarded": f"for={SPOOFED}",
        "Forwarded": f"for={SPOOFED}",
        "X-Real-IP": SPOOFED,
    }
    seen = ask(PROXY, {**claims, "X-Forward": "other", "X-Request-ID": "7"}, CLIENT)
    assert not [key for key in seen if "FORWARDED" in key or "REAL" in key]
    assert (seen["HTTP_X_FORWARD"], seen["HTTP_X_REQUEST_ID"]) == ("other", "7")
    assert (seen["REMOTE_ADDR"], seen["REMOTE_PORT"]) == (CLIENT, "4711")
    assert (seen["wsgi.url_scheme"], seen["HTTP_HOST"], seen["SCRIPT_NAME"]) == ("http", "inner:8000", "")


def test_a_proxy_is_believed_in_every_field():
    """Address, scheme, host, port and prefix; the application builds the URL that its client knows."""
    headers = {
        "X-Forwarded-For": CLIENT,
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "shop.example",
        "X-Forwarded-Port": "8443",
        "X-Forwarded-Prefix": "/shop/",
    }
    seen = ask(PROXY, headers)
    assert Request(seen).url == "https://shop.example:8443/shop/"
    assert (seen["REMOTE_ADDR"], seen["REMOTE_PORT"], seen["SCRIPT_NAME"]) == (CLIENT, "", "/shop")
    assert seen["werkzeug.proxy_fix.orig"]["REMOTE_ADDR"] == PROXY


@pytest.mark.parametrize(("scheme", "port"), [("https", "443"), ("http", "80")])
def test_the_port_that_goes_without_saying(scheme, port):
    """The scheme's own port is not written behind the host: browsers do not either, and Django compares the two."""
    seen = ask(PROXY, {"X-Forwarded-Proto": scheme, "X-Forwarded-Host": "shop.example", "X-Forwarded-Port": port})
    assert (seen["HTTP_HOST"], seen["SERVER_PORT"]) == ("shop.example", port)
    assert Request(seen).url == f"{scheme}://shop.example/"


def test_a_proxy_that_says_nothing_changes_nothing():
    """A health check of the proxy's own comes from the proxy."""
    seen = ask(PROXY)
    assert (seen["REMOTE_ADDR"], seen["REMOTE_PORT"], seen["wsgi.url_scheme"]) == (PROXY, "4711", "http")


# ---- how far -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("allow", "chain", "client"),
    [
        (PROXY, CLIENT, CLIENT),
        (PROXY, f"{SPOOFED}, {CLIENT}", CLIENT),
        (PROXY, f"{SPOOFED},{CLIENT}", CLIENT),
        ("10.0.0.0/8", f"{SPOOFED}, {CLIENT}, 10.0.0.2", CLIENT),
        ("10.0.0.0/8", f"{SPOOFED}, {CLIENT}, 10.0.0.3, 10.0.0.2", CLIENT),
        ("10.0.0.0/8", f"10.0.0.9, {CLIENT}, 10.0.0.2", CLIENT),
        ("10.0.0.0/8,2001:db8::/32", f"{CLIENT}, 2001:db8::2", CLIENT),
        (PROXY, f"{CLIENT}, 10.0.0.2", "10.0.0.2"),  # a proxy that was not named is where trust ends
        ("10.0.0.0/8", "10.0.0.9, 10.0.0.2", "10.0.0.9"),  # all are ours: a request from inside
        ("*", f"{SPOOFED}, {CLIENT}", CLIENT),
        ("*", f"{CLIENT}, 10.0.0.2", "10.0.0.2"),
        ("*, 10.0.0.0/8", f"{SPOOFED}, {CLIENT}, 10.0.0.2", CLIENT),
        (PROXY, "", PROXY),
        (PROXY, "unknown", PROXY),
        ("10.0.0.0/8", f"{CLIENT}, unknown, 10.0.0.2", "10.0.0.2"),
        ("10.0.0.0/8", "_hidden, 10.0.0.2", "10.0.0.2"),
        (PROXY, f"{CLIENT},", PROXY),
        (PROXY, f'"{SPOOFED}, {CLIENT}', CLIENT),  # an open quote swallows nothing
        (PROXY, f'"{SPOOFED}", ", {CLIENT}', CLIENT),
        (PROXY, f"{CLIENT}:50123", CLIENT),
        (PROXY, "[2001:db8::7]:50123", "2001:db8::7"),
        (PROXY, "[2001:db8::7]", "2001:db8::7"),
        (PROXY, "2001:db8:0::7", "2001:db8::7"),
        (PROXY, f"::ffff:{CLIENT}", CLIENT),
        ("10.0.0.0/8", f"{CLIENT}:1, 10.0.0.2:2", CLIENT),
        (PROXY, "198.51.100.07", PROXY),  # an octal digit to some
        (PROXY, "1" * 9000, PROXY),
        (PROXY, f"{'x' * 9000}, {CLIENT}", CLIENT),
    ],
)
def test_the_client_is_the_first_that_is_not_a_proxy(allow, chain, client):
    """Read from the right, where the nearest proxy wrote; never further left than the first stranger."""
    assert address(allow, chain) == client


def test_a_chain_has_an_end():
    """Of an endless chain of trusted addresses so many are followed, no more."""
    chain = ", ".join(f"10.0.{number // 256}.{number % 256}" for number in range(3000))
    first = 3000 - HOPS_MAX
    assert address("10.0.0.0/8", chain) == f"10.0.{first // 256}.{first % 256}"


@given(st.text(st.characters(max_codepoint=0xFF)), st.booleans())
def test_no_client_chooses_its_address(claim, is_quoted):
    """Whatever a client sends, what its proxy appended is what counts."""
    chain = f'"{claim}", {CLIENT}' if is_quoted else f"{claim}, {CLIENT}"
    for allow in (PROXY, "*"):
        proxied = behind_proxies(lambda environ, start_response: [environ["REMOTE_ADDR"].encode()], allow)
        assert proxied({"REMOTE_ADDR": PROXY, "HTTP_X_FORWARDED_FOR": chain}, None) == [CLIENT.encode()]


# ---- what ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "value", "key", "expected"),
    [
        ("Proto", "https", "wsgi.url_scheme", "https"),
        ("Proto", "HTTPS", "wsgi.url_scheme", "https"),
        ("Proto", "https, http", "wsgi.url_scheme", "http"),
        ("Proto", "javascript", "wsgi.url_scheme", "http"),
        ("Proto", "https\x00", "wsgi.url_scheme", "http"),
        ("Proto", "", "wsgi.url_scheme", "http"),
        ("Host", "shop.example", "HTTP_HOST", "shop.example"),
        ("Host", "evil.example, shop.example:81", "HTTP_HOST", "shop.example:81"),
        ("Host", "[2001:db8::1]:81", "HTTP_HOST", "[2001:db8::1]:81"),
        ("Host", "shop.example/evil", "HTTP_HOST", "inner:8000"),
        ("Host", "user@shop.example", "HTTP_HOST", "inner:8000"),
        ("Host", "shop.example:http", "HTTP_HOST", "inner:8000"),
        ("Host", "a b", "HTTP_HOST", "inner:8000"),
        ("Port", "443", "SERVER_PORT", "443"),
        ("Port", "1, 8443", "SERVER_PORT", "8443"),
        ("Port", "0", "SERVER_PORT", "8000"),
        ("Port", "99999", "SERVER_PORT", "8000"),
        ("Port", "+1", "SERVER_PORT", "8000"),
        ("Port", "443@evil", "SERVER_PORT", "8000"),
        ("Prefix", "/shop", "SCRIPT_NAME", "/shop"),
        ("Prefix", "/shop/", "SCRIPT_NAME", "/shop"),
        ("Prefix", "/a/b", "SCRIPT_NAME", "/a/b"),
        ("Prefix", "/", "SCRIPT_NAME", ""),
        ("Prefix", "//evil.example", "SCRIPT_NAME", ""),
        ("Prefix", "/\\evil.example", "SCRIPT_NAME", ""),
        ("Prefix", "https://evil.example", "SCRIPT_NAME", ""),
        ("Prefix", "/a?b", "SCRIPT_NAME", ""),
    ],
)
def test_a_malformed_claim_is_none(name, value, key, expected):
    """The last value counts; what cannot be a scheme, host, port or prefix is taken away."""
    assert ask(PROXY, {f"X-Forwarded-{name}": value})[key] == expected


def test_an_application_finds_the_fields_in_their_normal_form():
    """Who reads the fields without ProxyFix sees the same as who reads the environ."""
    headers = {"X-Forwarded-For": f"{CLIENT}:50123", "X-Forwarded-Proto": "HTTPS", "X-Forwarded-Host": "a b"}
    seen = ask(PROXY, headers)
    assert seen["HTTP_X_FORWARDED_FOR"] == CLIENT
    assert seen["HTTP_X_FORWARDED_PROTO"] == "https"
    assert "HTTP_X_FORWARDED_HOST" not in seen


# ---- the option ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("allow", "message"),
    [
        ("10.0.0.1,", "an entry is empty"),
        (",", "an entry is empty"),
        ("localhost", "'localhost'"),
        ("10.0.0", "'10.0.0'"),
        ("10.0.0.1/8", "is an address in a network; the network is 10.0.0.0/8"),
        ("10.0.0.0/33", "10.0.0.0/33"),
        ("10.0.0.1 10.0.0.2", "'10.0.0.1 10.0.0.2'"),
        ("UNIX", "'UNIX'"),
        ("10.0.0.1:80", "10.0.0.1:80"),
        ("[::1]", r"\[::1\]"),
        ("**", r"'\*\*'"),
    ],
)
def test_a_wrong_value_is_explained(allow, message):
    """Said at the start: the option, the entry and the accepted forms."""
    for check in (parse_trusted_peers, lambda text: behind_proxies(Response(), text)):
        with pytest.raises(ConfigError, match=message) as raised:
            check(allow)
        assert "forwarded_allow_ips" in str(raised.value)
        assert "networks (10.0.0.0/8)" in str(raised.value)


def test_verdicts_are_remembered_within_bounds():
    """A flood of peers and of addresses in the field costs no memory, and no verdict is wrong for it."""
    proxied = behind_proxies(lambda environ, start_response: [environ["REMOTE_ADDR"]], PROXY)
    for number in range(5000):
        client = f"192.0.{number // 256}.{number % 256}"
        assert proxied({"REMOTE_ADDR": client, "HTTP_X_FORWARDED_FOR": SPOOFED}, None) == [client]
        assert proxied({"REMOTE_ADDR": PROXY, "HTTP_X_FORWARDED_FOR": client}, None) == [client]
    assert max(cache.cache_info().currsize for cache in (proxied._is_proxy, proxied._hop)) <= 1024
