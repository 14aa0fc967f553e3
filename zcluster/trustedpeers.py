"""Whom to believe about the client's address: the forms of --forwarded-allow-ips, parsed.

Invariant: pure. Which peer a request came from, and what it says about others, is for `http.proxies`.
"""

import ipaddress
from typing import Final

import msgspec

from zcluster.errors import ConfigError

PEER_FORMS: Final = "addresses (10.0.0.7, ::1), networks (10.0.0.0/8), 'unix' and '*', separated by commas"

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
IPAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


class TrustedPeers(msgspec.Struct, frozen=True):
    """Who is believed: everybody, peers on Unix sockets, peers in these networks."""

    anybody: bool = False
    unix: bool = False
    networks: tuple[Network, ...] = ()

    def hold(self, address: IPAddress) -> bool:
        """Whether this address is in one of the networks; `anybody` does not count."""
        return any(address.version == network.version and address in network for network in self.networks)


def parse_trusted_peers(text: str) -> TrustedPeers:
    """Return who is meant, nobody for ""; raises `ConfigError` naming the entry and the accepted forms."""
    anybody = unix = False
    networks: list[Network] = []
    for entry in text.split(",") if text.strip() else []:
        entry = entry.strip()
        if entry == "*":
            anybody = True
        elif entry == "unix":
            unix = True
        else:
            try:
                networks.append(_unmapped(ipaddress.ip_network(entry)))
            except ValueError as error:
                raise _bad_peer(text, _why(entry, error)) from None
    return TrustedPeers(anybody, unix, tuple(networks))


def plain_address(text: str) -> IPAddress:
    """The address in `text`, an IPv4 one also when it is written as an IPv6 one, without a zone; ValueError."""
    address = ipaddress.ip_address(text.partition("%")[0])  # the zone of fe80::1%eth0 is nothing that networks have
    return (address.ipv4_mapped or address) if address.version == 6 else address


def _unmapped(network: Network) -> Network:
    """::ffff:10.0.0.0/104 is 10.0.0.0/8: a dual-stack listener's peers are compared as what they are."""
    if network.version == 6 and network.prefixlen >= 96 and network.network_address.ipv4_mapped is not None:
        return ipaddress.IPv4Network((network.network_address.ipv4_mapped, network.prefixlen - 96))
    return network


def _why(entry: str, error: ValueError) -> str:
    if not entry:
        return "an entry is empty"
    try:
        return f"{entry!r} is an address in a network; the network is {ipaddress.ip_network(entry, strict=False)}"
    except ValueError:
        return str(error)


def _bad_peer(text: str, reason: str) -> ConfigError:
    return ConfigError(f"option 'forwarded_allow_ips' is {text!r:.200}, but {reason:.200}; accepted are {PEER_FORMS}")
