"""No address but public ones and exact allowed pairs, however it is spelt."""

import asyncio
import ipaddress
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.curation.fetch.errors import FetchError
from headrace.curation.fetch.net.address import (
    check_address,
    is_public,
    parse_allowed,
    parse_url,
)
from headrace.curation.fetch.net.fetcher import redirect_target
from headrace.curation.fetch.net.resolve import CheckedResolver, RefusedSocketError, check_all, open_socket

NONE = parse_allowed(())


@pytest.mark.parametrize(
    "text",
    [
        *("0.0.0.0", "10.1.2.3", "100.64.0.1", "100.100.100.200", "127.0.0.1", "127.255.255.254", "169.254.169.254"),
        *("172.16.0.1", "172.31.255.255", "192.0.0.192", "192.168.1.1", "198.18.0.1", "203.0.113.9", "224.0.0.1"),
        *("240.0.0.1", "255.255.255.255", "168.63.129.16", "192.88.99.1"),
        *("::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1"),
        *("2002:7f00:1::", "2001::1", "2001:db8::1", "fc00::1", "fd00:ec2::254", "fe80::1", "ff02::1", "100::1"),
        *("fec0::1", "3fff::1", "5f00::1"),
    ],
)
def test_an_address_that_is_not_public_is_refused(text: str) -> None:
    with pytest.raises(FetchError) as caught:
        check_address(ipaddress.ip_address(text), 80, NONE)
    assert caught.value.error_class == "refused-address"


@pytest.mark.parametrize(
    "text", ["8.8.8.8", "1.1.1.1", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_a_public_address_is_fetched(text: str) -> None:
    check_address(ipaddress.ip_address(text), 443, NONE)


@given(st.ip_addresses())
def test_whatever_python_calls_private_is_not_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    mapped = getattr(address, "ipv4_mapped", None)
    if (address.is_private or address.is_multicast or address.is_loopback or address.is_link_local) and mapped is None:
        assert not is_public(address)


@given(st.ip_addresses(v=4))
def test_embedding_an_address_does_not_change_the_verdict(address: ipaddress.IPv4Address) -> None:
    for prefix in (0xFFFF << 32, 0x64FF9B << 96):
        assert is_public(ipaddress.IPv6Address(prefix | int(address))) == is_public(address)


@pytest.mark.parametrize(
    ("url", "error_class"),
    [
        (None, "bad-url"),
        ("  ", "bad-url"),
        ("example.com/a.jpg", "bad-url"),
        ("//example.com/a.jpg", "bad-url"),
        ("http:///a.jpg", "bad-url"),
        ("http://example.com:99999/", "bad-url"),
        ("http://example.com:port/", "bad-url"),
        ("http://user:secret@example.com/", "bad-url"),
        ("http://example.com@127.0.0.1/", "bad-url"),
        ("http://example.com\\@127.0.0.1/", "bad-url"),
        ("http://a b/", "bad-url"),
        ("http://127.0.0.1%00.example.com/", "bad-url"),
        ("http://ex%2eample.com/", "bad-url"),
        ("http://[::1/", "bad-url"),
        ("http://" + "a" * 70 + ".com/", "bad-url"),
        ("http://example.com/" + "a" * 10_000, "bad-url"),
        ("file:///etc/passwd", "refused-scheme"),
        ("FILE:/etc/passwd", "refused-scheme"),
        ("ftp://example.com/a.jpg", "refused-scheme"),
        ("data:image/png;base64,AAAA", "refused-scheme"),
        ("javascript:alert(1)", "refused-scheme"),
        ("gopher://example.com/", "refused-scheme"),
        ("http+unix://%2Fvar%2Frun%2Fx/", "refused-scheme"),
        ("http://2130706433/", "refused-address"),
        ("http://0x7f000001/", "refused-address"),
        ("http://0x7f.1/", "refused-address"),
        ("http://0X7F.1/", "refused-address"),
        ("http://017700000001/", "refused-address"),
        ("http://0177.0.0.1/", "refused-address"),
        ("http://127.1/", "refused-address"),
        ("http://127.0.0.1./", "refused-address"),
        ("http://127.000.000.001/", "refused-address"),
        ("http://256.256.256.256/", "refused-address"),
        ("http://134744072/", "refused-address"),
        ("http://[fe80::1%25eth0]/", "refused-address"),
    ],
)
def test_an_odd_url_is_refused_by_class(url: str | None, error_class: str) -> None:
    with pytest.raises(FetchError) as caught:
        parse_url(url)
    assert caught.value.error_class == error_class


def test_hosts_in_other_scripts_become_punycode_and_digits_in_other_scripts_become_digits() -> None:
    assert parse_url("http://b\u00fccher.example/\u00e4 b.jpg?q=\u00f6").raw_host == "xn--bcher-kva.example"
    circled = parse_url("http://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460/")
    assert circled.raw_host == "127.0.0.1"


def test_a_line_break_in_a_url_cannot_start_a_header() -> None:
    url = parse_url("http://example.com/\r\nX-Injected: yes")
    assert "\r" not in str(url)
    assert "\n" not in str(url)


@given(st.text(max_size=60))
def test_any_text_is_a_url_or_a_fetch_error(text: str) -> None:
    for candidate in (text, f"http://{text}/", f"https://example.com/{text}", f"http://{text}@example.com"):
        try:
            url = parse_url(candidate)
        except FetchError:
            continue
        assert url.scheme in ("http", "https")
        assert url.raw_host
        assert url.raw_user is None


@given(st.text(max_size=60))
def test_any_location_is_a_url_or_a_fetch_error(text: str) -> None:
    base = parse_url("http://example.com/a/b")
    try:
        target = redirect_target(base, text)
    except FetchError:
        return
    assert target.scheme in ("http", "https")


@pytest.mark.parametrize("port", [0, 22, 25, 6667])
def test_a_port_of_another_service_is_refused(port: int) -> None:
    with pytest.raises(FetchError) as caught:
        check_address(ipaddress.ip_address("8.8.8.8"), port, NONE)
    assert caught.value.error_class == "refused-address"


def test_an_allowed_pair_allows_that_pair_only() -> None:
    allowed = parse_allowed(("127.0.0.1:8000", "[::1]:9000"))
    check_address(ipaddress.ip_address("127.0.0.1"), 8000, allowed)
    check_address(ipaddress.ip_address("::1"), 9000, allowed)
    for address, port in (("127.0.0.1", 8001), ("127.0.0.2", 8000), ("::ffff:127.0.0.1", 8000), ("::1", 8000)):
        with pytest.raises(FetchError):
            check_address(ipaddress.ip_address(address), port, allowed)


@pytest.mark.parametrize(
    "pair", ["localhost:80", "127.0.0.1", "127.0.0.1:0", "127.0.0.1:99999", "10.0.0.0/8:80", "0x7f.1:80", ":80"]
)
def test_what_may_be_allowed_is_an_exact_pair(pair: str) -> None:
    with pytest.raises(ValueError, match="ADDRESS:PORT"):
        parse_allowed((pair,))


def test_one_private_address_refuses_the_whole_name() -> None:
    both = [ipaddress.ip_address("8.8.8.8"), ipaddress.ip_address("10.0.0.1")]
    with pytest.raises(FetchError):
        check_all(both, 80, NONE)
    assert list(check_all(both, 80, parse_allowed(("10.0.0.1:80",)))) == both[1:]


def test_the_gate_at_the_socket_refuses_on_its_own() -> None:
    for target in (("127.0.0.1", 80), ("fe80::1%lo", 80, 0, 1)):
        family = socket.AF_INET6 if ":" in target[0] else socket.AF_INET
        with pytest.raises(RefusedSocketError):
            open_socket((family, socket.SOCK_STREAM, 0, "", target), NONE)
    open_socket((socket.AF_INET, socket.SOCK_STREAM, 0, "", ("8.8.8.8", 443)), NONE).close()


def test_a_name_is_looked_up_once_for_many_waiters() -> None:
    asked: list[str] = []

    def lookup(host: str) -> list[str]:
        asked.append(host)
        return ["8.8.8.8"]

    async def run() -> None:
        resolver = CheckedResolver(NONE, lookup=lookup)
        await asyncio.gather(*(resolver.resolve("example.com", 80) for _ in range(20)))
        await resolver.close()

    asyncio.run(run())
    assert asked == ["example.com"]
