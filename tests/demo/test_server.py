"""The servers misbehave as planned."""

import http.client
import socket
import time
import urllib.error
import urllib.request
from urllib.parse import urlsplit

import pytest

from headrace.demo.server import SmallWeb
from headrace.demo.web import Entry, Site, filled

pytestmark = pytest.mark.full
# Whatever proxy the environment names, loopback is asked directly.
OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def entries(site: Site, kind: str, *, fault: bool) -> list[Entry]:
    found = [entry for entry in site.entries if entry.kind == kind and entry.fault == fault and entry.reply is not None]
    assert found
    return found


def get(small_web: SmallWeb, entry: Entry) -> tuple[int, bytes, http.client.HTTPMessage]:
    """One request, no redirects followed."""
    parts = urlsplit(filled(entry.url, small_web.addresses))
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)
    try:
        connection.request("GET", parts.path + (f"?{parts.query}" if parts.query else ""))
        response = connection.getresponse()
        return response.status, response.read(), response.headers
    finally:
        connection.close()


def test_pictures_arrive_as_planned(site: Site, small_web: SmallWeb) -> None:
    for entry in entries(site, "true_pair", fault=False)[:20] + entries(site, "empty", fault=False):
        status, body, _ = get(small_web, entry)
        assert (status, body) == (200, entry.reply.body if entry.reply else b"")


def test_dead_links_answer_with_their_status(site: Site, small_web: SmallWeb) -> None:
    for entry in entries(site, "http_error", fault=True):
        assert entry.reply is not None
        assert get(small_web, entry)[0] == entry.reply.status


def test_trying_again_works(site: Site, small_web: SmallWeb) -> None:
    for entry in entries(site, "http_error", fault=False):
        assert entry.reply is not None
        statuses = [get(small_web, entry)[0] for _ in range(entry.reply.failures + 2)]
        assert statuses == [503] * entry.reply.failures + [200, 200]


def test_a_closed_connection_gives_fewer_bytes_than_promised(site: Site, small_web: SmallWeb) -> None:
    for entry in entries(site, "truncated", fault=True):
        if entry.reply is not None and entry.reply.manner == "cut":
            with pytest.raises(http.client.IncompleteRead):
                get(small_web, entry)


def test_a_slow_host_is_slow_and_the_near_miss_is_in_time(site: Site, small_web: SmallWeb) -> None:
    started, near_miss = time.monotonic(), entries(site, "slow_host", fault=False)[0]
    assert get(small_web, near_miss)[0] == 200
    assert near_miss.reply is not None
    assert 0.5 < near_miss.reply.seconds < 4
    assert time.monotonic() - started > 0.5
    slow = filled(entries(site, "slow_host", fault=True)[0].url, small_web.addresses)
    started = time.monotonic()
    with OPENER.open(slow, timeout=60) as response:
        received = response.read1()
        while received and time.monotonic() - started < 4:
            received = response.read1()
    assert received, "the whole picture came within four seconds"


def test_an_endless_body_does_not_end(site: Site, small_web: SmallWeb) -> None:
    endless = [e for e in entries(site, "too_large", fault=True) if e.reply and e.reply.manner == "endless"]
    with OPENER.open(filled(endless[0].url, small_web.addresses), timeout=60) as response:
        assert sum(len(response.read(1 << 20)) for _ in range(25)) > 20_000_000


def test_redirects_lead_where_they_should(site: Site, small_web: SmallWeb) -> None:
    for entry in entries(site, "private_redirect", fault=True):
        status, _, headers = get(small_web, entry)
        assert status in (301, 302, 307, 308)
        assert headers["Location"].startswith(f"http://{small_web.addresses['private']}/")
    assert small_web.num_private_connections == 0


def test_the_closed_port_refuses(small_web: SmallWeb) -> None:
    with pytest.raises(urllib.error.URLError):
        OPENER.open(f"http://{small_web.addresses['closed']}/1.jpg", timeout=60)


def test_the_private_listener_counts(site: Site, tmp_path: object) -> None:
    with SmallWeb(site, secret_path=f"{tmp_path}/secret.jpg") as other:
        host, port = other.addresses["private"].split(":")
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            assert connection.recv(1) == b""
        assert other.num_private_connections == 1


def test_opt_out_headers_are_sent(site: Site, small_web: SmallWeb) -> None:
    values = {get(small_web, entry)[2]["X-Robots-Tag"] for entry in entries(site, "opted_out", fault=True)}
    assert "noai" in values
