"""Behind a proxy: the client's address, scheme, host and prefix as the proxy tells them, through Werkzeug's ProxyFix.

Invariant: what an application reads about its client is known to this worker or was said by a peer that the operator
trusts, and it is well-formed. Claims of anybody else do not reach the application at all.

Theory of operation. Three rules stand around ProxyFix, which itself believes whatever it is given.

Who: only a peer in `--forwarded-allow-ips`. From any other the X-Forwarded-* fields, Forwarded and X-Real-IP are
removed, because frameworks and applications read them by themselves, long after it is forgotten who sent them (an
`X-Forwarded-Client-Cert` even is a credential). Without the option nothing is touched: an application with a ProxyFix
of its own goes on as before.

How far: through a chain of proxies X-Forwarded-For is read from its right end, where the nearest one wrote, as long
as the addresses are trusted ones; the first that is not is the client (nginx calls it real_ip_recursive). Addresses
further left are hearsay, which the client may have sent. "*" and "unix" say that whoever can connect is a proxy, but
nothing about the addresses in the chain, so with them alone one step is taken. Of the other fields the nearest
proxy's value, the last, counts: what stands before it may be the client's, passed on by a proxy that only appends.

What: a claim that is malformed is no claim. An address is a literal one (a port behind it is dropped, as some load
balancers write it), a scheme is http or https, a prefix is a path that cannot be read as a host (`//evil.example`).
"""

import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final, NamedTuple
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from werkzeug.middleware.proxy_fix import ProxyFix

from zcluster.trustedpeers import TrustedPeers, parse_trusted_peers, plain_address

# Deeper chains than a few exist only in X-Forwarded-For fields that somebody made up.
HOPS_MAX: Final = 16
# Peers and hops remembered, texts to verdicts: proxies are few; the rest are clients, who come and go.
VERDICTS: Final = 1024
HOP_MAX_CHARS: Final = 80  # an IPv6 address with brackets, zone and port has 70; what is longer is not even looked at

_is_scheme = re.compile(r"(?i:https?)").fullmatch
_is_host = re.compile(r"(?:[A-Za-z0-9\-._~]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?").fullmatch
_is_port = re.compile(
    r"(?:[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5])"
).fullmatch
_is_prefix = re.compile(r"(?:/[A-Za-z0-9\-._~!$&'()*+;=:@%]+)+").fullmatch
_CHECKS: Final[tuple[tuple[str, Callable[[str], object]], ...]] = (
    ("HTTP_X_FORWARDED_PROTO", _is_scheme),
    ("HTTP_X_FORWARDED_HOST", _is_host),
    ("HTTP_X_FORWARDED_PORT", _is_port),
    ("HTTP_X_FORWARDED_PREFIX", _is_prefix),
)
_DEFAULT_PORTS: Final = {"http": "80", "https": "443"}
_CLAIMS: Final = ("HTTP_X_FORWARDED", "HTTP_FORWARDED", "HTTP_X_REAL_IP")  # what their names begin with


class _Hop(NamedTuple):
    """An address in a chain, as text, and whether it is a proxy's that the operator trusts."""

    address: str
    is_trusted: bool


class _LastValues(ProxyFix):
    """Takes its values apart at each comma. Quotes have no meaning in these fields.

    Where they had one, a client's unclosed quote would swallow what the proxy appends.
    """

    def _get_real_value(self, trusted: int, value: str | None) -> str | None:
        if not (trusted and value):
            return None
        values = value.rsplit(",", trusted)
        return values[-trusted].strip() or None if len(values) >= trusted else None


class _Proxies:
    """The application behind proxies. Any thread may call it."""

    def __init__(self, app: WSGIApplication, trusted: TrustedPeers) -> None:
        self._app = app
        self._trusted = trusted
        self._is_proxy = lru_cache(VERDICTS)(self._judge_peer)
        self._hop = lru_cache(VERDICTS)(self._judge_hop)
        self._by_hops = [
            _LastValues(app, x_for=hops, x_proto=1, x_host=1, x_port=1, x_prefix=1) for hops in range(HOPS_MAX + 1)
        ]

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        if not self._is_proxy(environ.get("REMOTE_ADDR", "")):
            for key in [key for key in environ if key.startswith(_CLAIMS)]:
                del environ[key]
            return self._app(environ, start_response)
        claimed = environ.get("HTTP_X_FORWARDED_FOR")
        hops = self._count_hops(environ, claimed) if claimed else 0
        for key, is_good in _CHECKS:
            if key in environ:
                _keep_if(is_good, key, environ)
        scheme = str(environ.get("HTTP_X_FORWARDED_PROTO") or environ.get("wsgi.url_scheme"))
        if "HTTP_X_FORWARDED_PORT" in environ and environ["HTTP_X_FORWARDED_PORT"] == _DEFAULT_PORTS.get(scheme):
            # ProxyFix would write it behind the host, and "example.org:443" is not the host that a browser's Origin
            # names: Django's CSRF check would refuse every form behind a load balancer that sends this field.
            environ["SERVER_PORT"] = environ.pop("HTTP_X_FORWARDED_PORT")
        return self._by_hops[hops](environ, start_response)

    def _count_hops(self, environ: WSGIEnvironment, claimed: str) -> int:
        """How many addresses from the right end of X-Forwarded-For the client's is; 0: it is not there."""
        texts = claimed.rsplit(",", HOPS_MAX)[-HOPS_MAX:]
        hops = 0
        for text in reversed(texts):
            hop = self._hop(text.strip()) if len(text) <= HOP_MAX_CHARS else None
            if hop is None:
                break  # "unknown", a pseudonym, nonsense: what is known ends here
            hops += 1
            if hop.address != texts[-hops].strip():
                texts[-hops] = hop.address
                environ["HTTP_X_FORWARDED_FOR"] = ",".join(texts)
            if not hop.is_trusted:
                break
        if hops:
            environ["REMOTE_PORT"] = ""  # it is the proxy's, and of no meaning beside the client's address
        return hops

    def _judge_peer(self, peer: str) -> bool:
        if self._trusted.anybody:
            return True
        if not peer:  # on a Unix socket
            return self._trusted.unix
        try:
            return self._trusted.hold(plain_address(peer))
        except ValueError:
            return False

    def _judge_hop(self, text: str) -> _Hop | None:
        try:
            address = plain_address(_without_port(text))
        except ValueError:
            return None
        return _Hop(str(address), self._trusted.hold(address))


def _keep_if(is_good: Callable[[str], object], key: str, environ: WSGIEnvironment) -> None:
    """Leave the last value of a field, in its normal form, or take the field away."""
    value = environ[key].rpartition(",")[2].strip()
    if key == "HTTP_X_FORWARDED_PREFIX":
        value = value.rstrip("/")  # SCRIPT_NAME does not end with a slash (PEP 3333); the root is the empty one
    elif key == "HTTP_X_FORWARDED_PROTO":
        value = value.lower()
    if not is_good(value):
        del environ[key]
    elif value != environ[key]:
        environ[key] = value


def _without_port(text: str) -> str:
    """192.0.2.1:8080 and [2001:db8::1]:8080 without their ports; anything else as it is."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def behind_proxies(app: WSGIApplication, allow: str) -> WSGIApplication:
    """Return `app` behind the proxies that `allow` names, in the forms of --forwarded-allow-ips; `app` itself for "".

    Raises `ConfigError` for what is no such form.
    """
    trusted = parse_trusted_peers(allow)
    return _Proxies(app, trusted) if trusted != TrustedPeers() else app
