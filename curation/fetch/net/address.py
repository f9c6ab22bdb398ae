"""Which URLs and addresses may be fetched: public ones over http(s), and exact pairs the user allowed.

A URL is parsed once; the same object names the host that is resolved and connected to, so two parsers cannot disagree.
A name is not checked here but every address it resolves to, and again at the socket (`resolve.py`), as a name may
change its address between two looks.
"""

import ipaddress
import re
from collections.abc import Iterable

from yarl import URL

from headrace.curation.fetch.errors import FetchError
from headrace.curation.fetch.net.spelling import parse, trimmed
from headrace.text import MAX_SHOWN, one_line

MAX_URL_CHARS = 8192
MAX_HOST_CHARS = 253

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
AllowedPairs = frozenset[tuple[Address, int]]

_HOST = re.compile(r"[a-z0-9_-]{1,63}(?:\.[a-z0-9_-]{1,63})*\.?")
_IPV4 = re.compile(r"(?:(?:0|[1-9][0-9]{0,2})\.){3}(?:0|[1-9][0-9]{0,2})")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_SCHEME = re.compile(r"\s*([A-Za-z][A-Za-z0-9+.-]*):")

# Not ipaddress.is_global: what it says changed within Python 3.11 (gh-113171). From IANA's two special-purpose
# address registries; what is not reachable from the whole internet, and relays to such addresses.
_NOT_PUBLIC_V4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",
        "127.0.0.0/8",
        "168.63.129.16/32",  # a cloud's metadata service at a public address
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
_GLOBAL_UNICAST_V6 = ipaddress.IPv6Network("2000::/3")
_NOT_PUBLIC_V6 = tuple(ipaddress.IPv6Network(text) for text in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20"))
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")

# "Bad ports" of the Fetch standard (whatwg): services that an HTTP request could be made to speak to.
_BLOCKED_PORTS = (
    "0 1 7 9 11 13 15 17 19 20 21 22 23 25 37 42 43 53 69 77 79 87 95 101 102 103 104 109 110 111 113 115 117 119 "
    "123 135 137 139 143 161 179 389 427 465 512 513 514 515 526 530 531 532 540 548 554 556 563 587 601 636 989 "
    "990 993 995 1719 1720 1723 2049 3659 4045 4190 5060 5061 6000 6566 6665 6666 6667 6668 6669 6679 6697 10080"
)
BLOCKED_PORTS = frozenset(int(port) for port in _BLOCKED_PORTS.split())


def parse_url(text: str | None) -> URL:
    """Return the URL to fetch. Raises FetchError: `bad-url`, `refused-scheme`, or `refused-address` for odd numbers."""
    if text is None or not text.strip():
        raise FetchError("bad-url", "the row has no URL")
    text = trimmed(text)
    if len(text) > MAX_URL_CHARS:
        raise FetchError("bad-url", f"the URL has {len(text)} characters, over {MAX_URL_CHARS}")
    scheme = _SCHEME.match(text)
    if scheme is None:
        raise FetchError("bad-url", "no scheme: a URL starts with http:// or https://")
    if scheme[1].lower() not in ("http", "https"):
        raise FetchError("refused-scheme", f"scheme {scheme[1].lower()[:40]!r} is not fetched, only http and https")
    try:
        url = parse(text)
    except (ValueError, TypeError) as error:
        raise FetchError("bad-url", f"not a URL: {one_line(str(error))[:MAX_SHOWN]}") from error
    return check_parts(url)


def check_parts(url: URL) -> URL:
    """Return `url` if its scheme, credentials and host are ones we fetch; also for the target of a redirect."""
    if url.scheme not in ("http", "https"):
        raise FetchError("refused-scheme", f"scheme {url.scheme[:40]!r} is not fetched, only http and https")
    if url.raw_user is not None or url.raw_password is not None:
        raise FetchError("bad-url", "the URL holds a user name or password, which are not sent")
    host = url.raw_host
    if not host:
        raise FetchError("bad-url", "the URL has no host")
    if ":" not in host:
        _check_host_name(host)
    elif _literal(host) is None:
        raise FetchError("refused-address", "an IPv6 address with a zone is not public")
    return url


def _check_host_name(host: str) -> None:
    if len(host) > MAX_HOST_CHARS or not _HOST.fullmatch(host):
        raise FetchError("bad-url", "the host is not a host name")
    last = host.rstrip(".").rpartition(".")[2]
    # A host whose last label is a number is an IPv4 address to the C library: 2130706433, 0x7f.1, 017700000001.
    if _NUMBER.fullmatch(last) and _literal(host) is None:
        raise FetchError("refused-address", "an address in an unusual notation")


def _literal(host: str) -> Address | None:
    try:
        if ":" in host:
            return None if "%" in host else ipaddress.IPv6Address(host)
        return ipaddress.IPv4Address(host) if _IPV4.fullmatch(host) else None
    except ValueError:
        return None


def literal_address(host: str) -> Address | None:
    """Return the address that `host` spells out in its usual notation, or None for a name."""
    return _literal(host)


def parse_allowed(pairs: Iterable[str]) -> AllowedPairs:
    """Read `ADDRESS:PORT` pairs (`127.0.0.1:8000`, `[::1]:8000`). Raises ValueError."""
    allowed = set()
    for pair in pairs:
        host, _, port = pair.rpartition(":")
        address = _literal(host[1:-1] if host.startswith("[") and host.endswith("]") else host)
        if address is None or not port.isascii() or not port.isdecimal() or not 0 < int(port) < 65536:
            raise ValueError(f"allow_private: {pair!r} is not ADDRESS:PORT, for example 127.0.0.1:8000")
        allowed.add((address, int(port)))
    return frozenset(allowed)


def check_address(address: Address, port: int, allowed: AllowedPairs) -> None:
    """Raise FetchError `refused-address` unless the address is public and the port harmless, or the pair is allowed."""
    if (address, port) in allowed:
        return
    if port in BLOCKED_PORTS:
        raise FetchError("refused-address", f"port {port} belongs to another service")
    if not is_public(address):
        raise FetchError("refused-address", f"{address} is not a public address")


def is_public(address: Address) -> bool:
    """True if anyone on the internet may reach `address`; an address that embeds another is judged by that one."""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return is_public(address.ipv4_mapped)
        if address in _NAT64:
            return is_public(ipaddress.IPv4Address(int(address) & 0xFFFFFFFF))
        return address in _GLOBAL_UNICAST_V6 and not any(address in network for network in _NOT_PUBLIC_V6)
    return not any(address in network for network in _NOT_PUBLIC_V4)
