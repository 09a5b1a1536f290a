"""Which hosts may be asked, and which addresses they may have: pure."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from llmrouter.errors import FetchError, InvalidConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    Address = ipaddress.IPv4Address | ipaddress.IPv6Address

ANY = "*"
PORTS = {"http": 80, "https": 443}
_ENTRY = re.compile(r"^(http://)?(\*|(?:\*\.)?[A-Za-z0-9][A-Za-z0-9._-]*|\[[0-9a-fA-F:]+\])(?::([0-9]{1,5}))?$")
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
METADATA = frozenset(
    ipaddress.ip_address(text) for text in ("100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254")
)
"""Where clouds tell machines who they are, beside the link-local 169.254.169.254."""


class Place(NamedTuple):
    """Scheme, host and port of a URL."""

    scheme: str
    host: str
    port: int


def place_of(url: str) -> Place:
    """Raises FetchError (``HostNotAllowed``) where the URL names no host that could be asked."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise FetchError("HostNotAllowed", "a URL that cannot be read") from error
    if parts.scheme not in PORTS or not host or parts.username is not None:
        raise FetchError("HostNotAllowed", "only http and https URLs without a user are asked")
    return Place(parts.scheme, host.lower(), PORTS[parts.scheme] if port is None else port)


class HostRule(NamedTuple):
    """One entry of the allowed hosts: ``[http://]host[:port]``; the host may be ``*`` or ``*.suffix``.

    Without ``http://``, TLS alone is spoken there; without a port, it is the scheme's own.
    """

    is_plain: bool
    host: str
    port: int | None

    @classmethod
    def parse(cls, text: str) -> HostRule:
        """Raises InvalidConfigError naming the entry."""
        found = _ENTRY.match(text)
        if found is None:
            raise InvalidConfigError(f"allowed hosts: {text!r} is not [http://]host[:port]")
        host = found[2].strip("[]").lower()
        return cls(found[1] is not None, host, None if found[3] is None else int(found[3]))

    def covers(self, place: Place) -> bool:
        """Whether this entry allows to ask there."""
        if (place.scheme == "http") != self.is_plain or place.port != (self.port or PORTS[place.scheme]):
            return False
        if self.host.startswith("*."):
            return place.host.endswith(self.host[1:])
        return self.host in {ANY, place.host}


class Hosts:
    """The hosts that may be asked."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self._rules = tuple(map(HostRule.parse, allowed))

    def rule_for(self, place: Place) -> HostRule:
        """The most particular entry that covers the place; raises FetchError (``HostNotAllowed``) without one."""
        rules = [rule for rule in self._rules if rule.covers(place)]
        if not rules:
            message = f"{place.scheme}://{place.host}:{place.port} is not among the hosts that models may come from"
            raise FetchError("HostNotAllowed", message)
        return max(rules, key=lambda rule: ("*" not in rule.host, len(rule.host)))

    def is_plain(self, host: str, port: int | None) -> bool:
        """Whether a registry, which has no scheme, is spoken to without TLS."""
        place = Place("http", host, port or PORTS["http"])
        return any(rule.covers(place) for rule in self._rules if rule.host != ANY)


def check_address(rule: HostRule, text: str) -> None:
    """Raises FetchError (``AddressRefused``) unless a host of this rule may have the address.

    Never: link-local, multicast, unspecified and reserved ones, and those of clouds' metadata. Loopback: only where the
    entry names it. Private ones: only where the entry names the host, or its domain.
    """
    address = _plain(ipaddress.ip_address(text.partition("%")[0]))
    is_never = address.is_link_local or address.is_multicast or address.is_unspecified or address in METADATA
    is_reserved = address.is_reserved and not address.is_loopback  # ::1 counts as both
    if is_never or is_reserved:
        raise FetchError("AddressRefused", "the host has an address that models never come from")
    if address.is_loopback and not _names_loopback(rule.host):
        raise FetchError("AddressRefused", "the host has an address of this machine itself")
    if not address.is_global and rule.host == ANY:
        raise FetchError("AddressRefused", "the host has a private address: it must be allowed by its name")


def _plain(address: Address) -> Address:
    """The IPv4 address that an IPv6 one stands for, if it stands for one."""
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    teredo = None if address.teredo is None else address.teredo[1]
    return address.ipv4_mapped or address.sixtofour or teredo or address


def _names_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name
