"""A server gets a URL as the list spells it, but for what may not stand in a request."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.curation.fetch.errors import FetchError
from headrace.curation.fetch.net.address import parse_url
from headrace.curation.fetch.net.fetcher import redirect_target

KEPT = [
    "/a%2Cb%3A%28c%29.jpg?txt=a%2Cb&s=0f%7E",
    "/?url=https%3A%2F%2Fb.example%2Fc.jpg%3Fw%3D1&Signature=a%2Bb%2Fc%3D",
    "/%7euser/%41.jpg?a?b",
    "/%zz%/100%.jpg?x=%",
    "/a%2Fb%2fc.jpg",
    "//double//slash.jpg",
    "/a|b[1]~(c)*!$&'+,;=:@.jpg?q=[1]|{2}^`\\&r=a/b?c",
    "/.../..a/b../.hidden",
    "/a+b.jpg?c+d",
    "/?",
]
"""Paths that are sent as they are."""

QUOTED = [
    ("/a b.jpg", "/a%20b.jpg"),
    ("/a b%2C.jpg?c d", "/a%20b%2C.jpg?c%20d"),
    ("/\u00e9|\u4e2d.jpg?\U0001f600=\u00e9", "/%C3%A9|%E4%B8%AD.jpg?%F0%9F%98%80=%C3%A9"),
    ('/"<>`{}^.jpg', "/%22%3C%3E%60%7B%7D%5E.jpg"),
    ("/a?\"'<>", "/a?%22%27%3C%3E"),
    ("/a\\b\\c.jpg?d\\e", "/a/b/c.jpg?d\\e"),
    ("/a\tb\r\nc.jpg", "/abc.jpg"),
    ("/x/../b%2C", "/b%2C"),
    ("/x/./y/%2E%2e/.%2E/b/%2e", "/b/"),
    ("/../../b/..", "/"),
    ("/a\x00b\x7f.jpg", "/a%00b%7F.jpg"),
    ("/a#b?c", "/a"),
    ("/a?b#c d", "/a?b"),
    ("", "/"),
    ("?q=1", "/?q=1"),
    ("#top", "/"),
]
"""(as the list spells it, as it is sent)."""


@pytest.mark.parametrize(("spelled", "sent"), [*((path, path) for path in KEPT), *QUOTED])
def test_a_server_gets_the_url_as_the_list_spells_it(server, web, spelled: str, sent: str) -> None:
    server.answers[sent] = web.reply(web.jpeg())
    for text in (server.url(spelled), f" \n{server.url(spelled)}\t\u00a0"):
        assert web.fetch(text, web.config_for(server)).error_class is None
    assert [requested for requested, _ in server.requests] == [sent] * 2


@pytest.mark.parametrize(("spelled", "sent"), [*((path, path) for path in KEPT), *QUOTED])
def test_a_redirect_is_followed_as_it_is_spelled(server, web, spelled: str, sent: str) -> None:
    if any(letter in spelled for letter in "\r\n\x00\x7f") or not spelled.isascii():
        return  # a header cannot hold it
    server.answers[sent] = web.reply(web.jpeg())
    locations = [server.url(spelled)]
    if spelled.startswith("/") and not spelled.startswith("//"):
        locations.append(spelled)
    for number, location in enumerate(locations):
        server.answers[f"/from/{number}"] = web.redirect(location)
        assert web.fetch(server.url(f"/from/{number}"), web.config_for(server)).error_class is None
    assert [requested for requested, _ in server.requests if not requested.startswith("/from/")] == [sent] * len(
        locations
    )


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("x%2C.jpg", "http://a.example/b/x%2C.jpg"),
        ("../x", "http://a.example/x"),
        ("?y", "http://a.example/b/c?y"),
        ("", "http://a.example/b/c?q=%2C"),
        ("#top", "http://a.example/b/c?q=%2C"),
        ("/x?", "http://a.example/x?"),
        ("//b.example/x|y", "http://b.example/x|y"),
        ("\\\\b.example\\x?y\\z", "http://b.example/x?y\\z"),
        ("HTTPS://B.EXAMPLE:443/%zz", "https://b.example/%zz"),
        ("http:x", "http://a.example/b/x"),
        ("caf\udce9", "http://a.example/b/caf%E9"),
    ],
)
def test_a_reference_leads_where_a_browser_goes(location: str, target: str) -> None:
    assert str(redirect_target(parse_url("http://a.example/b/c?q=%2C"), location)) == target


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("HTTP://EXAMPLE.com/", "example.com", 80),
        ("https://example.com:443/", "example.com", 443),
        ("http://example.com:/", "example.com", 80),
        ("http://b\u00fccher.example:8080/\u00e4 b", "xn--bcher-kva.example", 8080),
        ("http://[::1]:81?a", "::1", 81),
        ("http://a.example\u3002com/", "a.example.com", 80),
        ("h\tttp://ex\nample.com/", "example.com", 80),
    ],
)
def test_the_host_is_in_the_spelling_of_the_network(text: str, host: str, port: int) -> None:
    url = parse_url(text)
    assert (url.raw_host, url.port, url.host_port_subcomponent.lower()) == (
        host,
        port,
        (f"[{host}]" if ":" in host else host) + ("" if port in (80, 443) else f":{port}"),
    )


def slow_target(rest: str) -> str:
    """Path and query by the URL standard, a letter at a time."""
    rest = "".join(letter for letter in rest if letter not in "\t\n\r").split("#")[0]
    path, mark, query = rest.partition("?")
    segments: list[str] = []
    parts = path.replace("\\", "/").split("/")[1:]
    for number, part in enumerate(parts):
        dots = part.lower().replace("%2e", ".")
        if dots == "..":
            segments = segments[:-1]
        elif dots != ".":
            segments.append("".join(quoted(letter, ' "#<>?^`{}') for letter in part))
        if dots in (".", "..") and number == len(parts) - 1:
            segments.append("")
    return "/" + "/".join(segments) + mark + "".join(quoted(letter, " \"#'<>") for letter in query)


def quoted(letter: str, letters: str) -> str:
    if letter in letters or not 0x20 < ord(letter) < 0x7F:
        return "".join(f"%{byte:02X}" for byte in letter.encode())
    return letter


@settings(max_examples=600, deadline=None)
@given(
    authority=st.sampled_from(["a.example", "A.EXAMPLE:80", "[::1]:81", "1.2.3.4", "\u4e2d.example"]),
    rest=st.text(st.sampled_from("a/?#%.:@\\[]2EeCc|{}^`'\"<> \t\n\u00e9\x00"), max_size=14),
)
def test_any_spelling_is_sent_as_the_standard_says(authority: str, rest: str) -> None:
    text = f"http://{authority}/{rest}".strip(" \t\n\x00")
    rest = text.removeprefix(f"http://{authority}") or "/"
    url = parse_url(text)
    plain = parse_url(f"http://{authority}/")
    assert (url.scheme, url.raw_host, url.port, url.raw_user) == (plain.scheme, plain.raw_host, plain.port, None)
    assert url.raw_path_qs == slow_target(rest)
    assert re.fullmatch(r"/[!-~]*", url.raw_path_qs)
    assert parse_url(str(url)).raw_path_qs == url.raw_path_qs
    location = text if re.match(r"/[\t\n]*[/\\]", rest) else rest  # two slashes begin a host
    assert redirect_target(plain, location).raw_path_qs == url.raw_path_qs


@given(st.text(max_size=40))
def test_any_reference_keeps_within_a_request_line(text: str) -> None:
    try:
        url = redirect_target(parse_url("http://a.example/b"), text)
    except FetchError:
        return
    assert re.fullmatch(r"/[!-~]*", url.raw_path_qs)
