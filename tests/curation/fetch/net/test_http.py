"""Every refusal and every error class, against a server that really does it."""

import asyncio
import gc
import gzip
import hashlib
import random
import socket
import ssl
import struct
import subprocess
import threading
import time
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def png_header(width: int, height: int) -> bytes:
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 0) + b"IEND" + struct.pack(">I", zlib.crc32(b"IEND"))


def chunked(body: bytes, *, end: bool = True) -> bytes:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    parts = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in (body[:100], body[100:]))
    return head + parts + (b"0\r\n\r\n" if end else b"")


def test_an_image_arrives_as_it_was_sent(server, web) -> None:
    server.answers["/a.jpg"] = web.reply(web.jpeg())
    outcome = web.fetch(server.url("/a.jpg"), web.config_for(server))
    assert outcome.error_class is None
    assert (outcome.header.format, outcome.header.width, outcome.header.height) == ("jpeg", 32, 32)
    assert outcome.sha256 == hashlib.sha256(web.jpeg()).hexdigest()


def test_a_request_says_who_asks_and_nothing_else(server, web, monkeypatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    server.answers["/a"] = web.reply(status="302 Found", headers=("Location: /b", "Set-Cookie: id=1; Path=/"))
    server.answers["/b"] = web.reply(web.jpeg())
    outcome = web.fetch(server.url("/a"), web.config_for(server, user_agent="headrace test"))
    assert outcome.error_class is None
    for _, headers in server.requests:
        assert headers["user-agent"] == "headrace test"
        assert headers["accept-encoding"] == "identity"
        assert not {"cookie", "authorization", "referer"} & headers.keys()


@pytest.mark.parametrize(
    ("status", "error_class"),
    [
        ("404 Not Found", "http-4xx"),
        ("403 Forbidden", "http-4xx"),
        ("429 Too Many Requests", "http-429"),
        ("500 Oh", "http-5xx"),
        ("503 Busy", "http-5xx"),
        ("204 No Content", "empty"),
        ("206 Partial Content", "protocol"),
        ("304 Not Modified", "protocol"),
        ("302 Found", "redirects"),
        ("999 What", "protocol"),
    ],
)
def test_a_status_has_its_class(server, web, status: str, error_class: str) -> None:
    server.answers["/"] = web.reply(status=status)
    outcome = web.fetch(server.url(), web.config_for(server))
    assert outcome.error_class == error_class
    assert status[:3] in outcome.error_message


def test_what_is_not_an_image_has_its_class(server, web) -> None:
    config = web.config_for(server, max_pixels=1_000_000)
    page = web.reply(b"<!DOCTYPE html>" + b" " * 200, headers=("Content-Type: image/jpeg",))
    bodies = {
        "/page.jpg": (page, "not-image"),
        "/empty": (web.reply(b""), "empty"),
        "/cut.jpg": (web.reply(web.jpeg()[:-200]), "truncated"),
        "/cut-in-header.jpg": (web.reply(web.jpeg()[:40]), "truncated"),
        "/bomb.png": (web.reply(png_header(100_000, 100_000)), "bomb"),
        "/tiny": (web.reply(b"\xff\xd8"), "not-image"),
        "/text": (web.reply(b"hello"), "not-image"),
    }
    for path, (answer, error_class) in bodies.items():
        server.answers[path] = answer
        assert web.fetch(server.url(path), config).error_class == error_class, path


def test_the_rest_of_a_page_is_not_downloaded(server, web) -> None:
    sent = []

    async def endless(_, writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        for _ in range(100_000):
            writer.write(b"<html>" * 2000)
            await writer.drain()
            sent.append(12_000)
            await asyncio.sleep(0.001)

    server.answers["/"] = endless
    assert web.fetch(server.url(), web.config_for(server)).error_class == "not-image"
    assert sum(sent) < 60_000_000  # of 1.2 GB; a few megabytes fit into the buffers of the connection


def test_a_body_over_the_cap_is_refused(server, web) -> None:
    image = web.jpeg(size=128)
    config = web.config_for(server, max_bytes=len(image) - 1)
    server.answers["/declared"] = web.reply(image)
    server.answers["/undeclared"] = web.reply(image, length=None)
    server.answers["/chunked"] = chunked(image)
    server.answers["/declared-only"] = web.reply(b"", length=1 << 40)
    for path in server.answers:
        assert web.fetch(server.url(path), config).error_class == "too-large", path
    config = web.config_for(server, max_bytes=len(image))
    for path in ("/declared", "/undeclared", "/chunked"):
        assert web.fetch(server.url(path), config).error_class is None, path


def test_a_compressed_image_is_unpacked_under_the_cap(server, web) -> None:
    image = web.jpeg()
    server.answers["/good"] = web.reply(gzip.compress(image), headers=("Content-Encoding: gzip",))
    server.answers["/zlib"] = web.reply(zlib.compress(image), headers=("Content-Encoding: deflate",))
    server.answers["/cut"] = web.reply(gzip.compress(image)[:-20], headers=("Content-Encoding: gzip",))
    server.answers["/lie"] = web.reply(image, headers=("Content-Encoding: gzip",))
    server.answers["/other"] = web.reply(image, headers=("Content-Encoding: br",))
    server.answers["/twice"] = web.reply(image, headers=("Content-Encoding: gzip, gzip",))
    found = {path: web.fetch(server.url(path), web.config_for(server)) for path in server.answers}
    assert found["/good"].sha256 == found["/zlib"].sha256 == hashlib.sha256(image).hexdigest()
    classes = [found[path].error_class for path in ("/cut", "/lie", "/other", "/twice")]
    assert classes == ["truncated", "protocol", "protocol", "protocol"]


def test_a_gzip_bomb_is_refused_at_the_cap(server, web) -> None:
    pack = zlib.compressobj(9, wbits=31)
    bomb = pack.compress(web.jpeg()) + b"".join(pack.compress(bytes(1 << 20)) for _ in range(200)) + pack.flush()
    assert len(bomb) < 1_000_000
    server.answers["/"] = web.reply(bomb, headers=("Content-Encoding: gzip",))
    outcome = web.fetch(server.url(), web.config_for(server, max_bytes=1_000_000))
    assert outcome.error_class == "too-large"


def test_a_short_body_is_truncated(server, web) -> None:
    image = web.jpeg()
    server.answers["/length"] = web.reply(image, length=len(image) + 10)
    server.answers["/chunks"] = chunked(image, end=False)
    for path in server.answers:
        outcome = web.fetch(server.url(path), web.config_for(server))
        assert outcome.error_class == "truncated", path
        assert "connection ended" in outcome.error_message
    server.answers["/whole"] = chunked(image)
    assert web.fetch(server.url("/whole"), web.config_for(server)).error_class is None


def test_what_is_not_http_is_a_protocol_failure(server, web) -> None:
    long_line = "X-Long: " + "a" * 100_000
    many = tuple(f"X-{number}: 1" for number in range(5000))
    server.answers["/rubbish"] = b"\x00\x01\x02\x03 not http\r\n\r\n"
    server.answers["/long"] = web.reply(web.jpeg(), headers=(long_line,))
    server.answers["/many"] = web.reply(web.jpeg(), headers=many)
    server.answers["/ssh"] = b"SSH-2.0-OpenSSH_9.2\r\n"
    for path in server.answers:
        assert web.fetch(server.url(path), web.config_for(server)).error_class == "protocol", path


def test_endless_headers_end_at_a_cap(server, web) -> None:
    async def endless(_, writer) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(100_000):
            writer.write(b"X-%d: %s\r\n" % (number, b"a" * 1000))
            await writer.drain()

    server.answers["/"] = endless
    assert web.fetch(server.url(), web.config_for(server)).error_class == "protocol"


def test_no_server_is_a_connect_failure_and_silence_is_one_too(server, web) -> None:
    with socket.socket() as unused:  # bound, so that no other test takes it; nobody listens
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        config = web.config_for(server, allow_private=(f"127.0.0.1:{port}", server.pair))
        outcome = web.fetch(f"http://127.0.0.1:{port}/", config)
    assert (outcome.error_class, outcome.error_message) == ("connect", "connection refused")
    server.answers["/hang-up"] = b""
    assert web.fetch(server.url("/hang-up"), config).error_class == "connect"


def test_the_deadline_holds_for_a_drip_and_for_a_stall(server, web) -> None:
    image = web.jpeg()

    async def drip(_, writer) -> None:
        writer.write(web.reply(image)[: -len(image)])
        for byte in image:
            writer.write(bytes([byte]))
            await writer.drain()
            await asyncio.sleep(0.05)

    async def stall(*_) -> None:
        await asyncio.sleep(200)

    server.answers.update({"/drip": drip, "/stall": stall})
    config = web.config_for(server, attempt_seconds=0.4, deadline_seconds=0.4)
    for path in ("/drip", "/stall"):
        started = time.monotonic()
        outcome = web.fetch(server.url(path), config)
        assert outcome.error_class == "timeout"
        assert time.monotonic() - started < 100


def test_the_deadline_holds_over_all_attempts(server, web) -> None:
    async def stall(*_) -> None:
        await asyncio.sleep(200)

    server.answers["/"] = stall
    started = time.monotonic()
    outcome = web.fetch(server.url(), web.config_for(server, attempt_seconds=1.4, deadline_seconds=3.0, retries=20))
    assert outcome.error_class == "timeout"
    assert time.monotonic() - started > 2.4  # more than one attempt
    assert len(server.requests) <= 3  # and not all 21


def test_a_failure_that_may_pass_is_tried_again(server, web) -> None:
    async def second_time(server, writer) -> None:
        first = len(server.requests) == 1
        writer.write(web.reply(status="500 Oops") if first else web.reply(web.jpeg()))

    server.answers["/"] = second_time
    assert web.fetch(server.url(), web.config_for(server, retries=1)).error_class is None
    server.requests.clear()
    assert web.fetch(server.url(), web.config_for(server, retries=0)).error_class == "http-5xx"


@pytest.mark.parametrize(("length", "requests"), [(None, 2), (-1, 1)])
def test_a_cut_image_is_asked_for_again_where_the_cut_may_be_on_its_way(server, web, length, requests: int) -> None:
    async def second_time(server, writer) -> None:
        body = web.jpeg()[:-100] if len(server.requests) == 1 else web.jpeg()
        writer.write(web.reply(body, length=length))

    server.answers["/"] = second_time
    outcome = web.fetch(server.url(), web.config_for(server, retries=1))
    assert outcome.error_class == (None if requests == 2 else "truncated")
    assert len(server.requests) == requests


@pytest.mark.parametrize("status", ["404 Not Found", "403 Forbidden", "410 Gone"])
def test_a_failure_that_will_not_pass_is_not_tried_again(server, web, status: str) -> None:
    server.answers["/"] = web.reply(status=status)
    web.fetch(server.url(), web.config_for(server, retries=5))
    assert len(server.requests) == 1


def test_retry_after_is_honoured_up_to_the_deadline(server, web) -> None:
    async def busy(server, writer) -> None:
        first = len(server.requests) == 1
        answer = web.reply(status="429 Slow", headers=("Retry-After: 1",)) if first else web.reply(web.jpeg())
        writer.write(answer)

    server.answers["/soon"] = busy
    started = time.monotonic()
    assert web.fetch(server.url("/soon"), web.config_for(server, retries=1)).error_class is None
    assert time.monotonic() - started >= 0.9
    server.requests.clear()
    server.answers["/late"] = web.reply(status="429 Slow", headers=("Retry-After: 3600",))
    started = time.monotonic()
    assert web.fetch(server.url("/late"), web.config_for(server, retries=1)).error_class == "http-429"
    assert time.monotonic() - started < 200
    assert len(server.requests) == 1


def test_redirects_are_followed_up_to_a_number(server, web) -> None:
    for hop in range(10):
        server.answers[f"/{hop}"] = web.redirect(
            f"/{hop + 1}", status=("301 M", "302 F", "303 S", "307 T", "308 P")[hop % 5]
        )
    server.answers["/10"] = web.reply(web.jpeg())
    assert web.fetch(server.url("/5"), web.config_for(server)).error_class is None
    outcome = web.fetch(server.url("/4"), web.config_for(server))
    assert (outcome.error_class, outcome.error_message) == ("redirects", "more than 5 redirects")
    server.answers["/loop"] = web.redirect("/loop")
    server.requests.clear()
    assert web.fetch(server.url("/loop"), web.config_for(server)).error_class == "redirects"
    assert len(server.requests) == 6


@pytest.mark.parametrize(
    ("location", "error_class"),
    [
        ("file:///etc/passwd", "refused-scheme"),
        ("ftp://127.0.0.1/a", "refused-scheme"),
        ("data:image/png;base64,AAAA", "refused-scheme"),
        ("http://127.0.0.2:{port}/image.jpg", "refused-address"),
        ("//127.0.0.2:{port}/image.jpg", "refused-address"),
        ("http://2130706434:{port}/image.jpg", "refused-address"),
        ("http://0x7f.2:{port}/image.jpg", "refused-address"),
        ("http://[::ffff:127.0.0.2]:{port}/image.jpg", "refused-address"),
        ("http://169.254.169.254/latest/meta-data/", "refused-address"),
        ("http://[::1]:{port}/", "refused-address"),
        ("http://user:secret@127.0.0.2:{port}/image.jpg", "redirects"),
        ("http://a b/", "redirects"),
        ("http://[", "redirects"),
    ],
)
def test_a_redirect_is_judged_as_strictly_as_a_url(server, forbidden, web, location: str, error_class: str) -> None:
    server.answers["/"] = web.redirect(location.format(port=server.port))
    outcome = web.fetch(server.url(), web.config_for(server))
    assert outcome.error_class == error_class
    assert outcome.error_message.startswith("redirect 1: ")
    assert forbidden.num_connections == 0


def test_a_location_of_raw_bytes_is_followed(server, web) -> None:
    server.answers["/"] = web.redirect("/caf\xe9.jpg")
    server.answers["/caf%E9.jpg"] = web.reply(web.jpeg())
    assert web.fetch(server.url(), web.config_for(server)).error_class is None


def test_a_name_that_resolves_to_a_private_address_is_refused(server, forbidden, web) -> None:
    outcome = web.fetch(
        f"http://images.example:{server.port}/image.jpg", web.config_for(server), lookup=lambda _: ["127.0.0.2"]
    )
    assert (outcome.error_class, outcome.error_message) == ("refused-address", "127.0.0.2 is not a public address")
    assert forbidden.num_connections == 0


def test_rebinding_a_name_between_two_looks_gains_nothing(server, forbidden, web) -> None:
    """The first answer is allowed; every later one is the private address."""
    answers = iter([["127.0.0.1"]])
    server.answers["/image.jpg"] = web.redirect("/again.jpg")
    server.answers["/again.jpg"] = web.reply(web.jpeg())
    outcome = web.fetch(
        f"http://images.example:{server.port}/image.jpg",
        web.config_for(server),
        lookup=lambda _: next(answers, ["127.0.0.2"]),
    )
    assert outcome.error_class is None
    assert [path for path, _ in server.requests] == ["/image.jpg", "/again.jpg"]
    assert forbidden.num_connections == 0


def test_a_new_answer_after_the_cache_is_checked_again(server, forbidden, web, monkeypatch) -> None:
    monkeypatch.setattr("headrace.curation.fetch.net.resolve.CACHE_SECONDS", -1.0)
    answers = iter([["127.0.0.1"]])
    server.answers["/image.jpg"] = web.redirect("/again.jpg")
    outcome = web.fetch(
        f"http://images.example:{server.port}/image.jpg",
        web.config_for(server),
        lookup=lambda _: next(answers, ["127.0.0.2"]),
    )
    assert outcome.error_class == "refused-address"
    assert forbidden.num_connections == 0


def test_names_that_do_not_resolve_are_dns_failures(server, web) -> None:
    def missing(_: str) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    tries = []

    def later(_: str) -> list[str]:
        tries.append(1)
        if len(tries) == 1:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return ["127.0.0.1"]

    url = f"http://images.example:{server.port}/"
    server.answers["/"] = web.reply(web.jpeg())
    assert web.fetch(url, web.config_for(server, retries=2), lookup=missing).error_class == "dns"
    assert web.fetch(url, web.config_for(server, retries=0), lookup=later).error_class == "dns"
    tries.clear()
    assert web.fetch(url, web.config_for(server, retries=1), lookup=later).error_class is None


def test_a_slow_name_server_is_a_timeout_and_keeps_nobody(server, web) -> None:
    answered, started = threading.Event(), time.monotonic()
    outcome = web.fetch(
        "http://images.example/",
        web.config_for(server, attempt_seconds=0.3, deadline_seconds=0.3),
        lookup=lambda _: answered.wait(200) and [],
    )
    assert outcome.error_class == "timeout"
    assert time.monotonic() - started < 100
    answered.set()


@pytest.mark.parametrize(
    ("headers", "value"),
    [
        (("X-Robots-Tag: noai",), "X-Robots-Tag: noai"),
        (("X-Robots-Tag: index", "x-robots-tag: NoImageAI"), "X-Robots-Tag: NoImageAI"),
        (("X-Robots-Tag: headrace: noindex",), "X-Robots-Tag: headrace: noindex"),
        (
            ("TDM-Reservation: 1", "TDM-Policy: https://example.com/policy"),
            "TDM-Reservation: 1, TDM-Policy: https://example.com/policy",
        ),
    ],
)
def test_an_opt_out_is_honoured_recorded_and_can_be_switched_off(server, web, headers, value: str) -> None:
    server.answers["/"] = web.reply(web.jpeg(), headers=headers)
    outcome = web.fetch(server.url(), web.config_for(server))
    assert (outcome.error_class, outcome.error_message) == ("opted-out", value)
    assert web.fetch(server.url(), web.config_for(server, honor_opt_out=False)).error_class is None


def test_an_expected_sha256_is_verified(server, web) -> None:
    server.answers["/"] = web.reply(web.jpeg())
    right = hashlib.sha256(web.jpeg()).hexdigest()
    config = web.config_for(server)
    assert web.fetch(server.url(), config, expected_sha256=right.upper()).error_class is None
    assert web.fetch(server.url(), config, expected_sha256="0" * 64).error_class == "sha256-mismatch"


@pytest.fixture
def tls(web, tmp_path: Path) -> Iterator[tuple[Any, str, Path]]:
    """A server with a certificate of its own for images.example, its URL, and that certificate."""
    certificate, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    kind = ["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    subject = ["-subj", "/CN=images.example", "-addext", "subjectAltName=DNS:images.example"]
    command = ["openssl", *kind, "-keyout", key, "-out", certificate, *subject]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server = web.WebServer(ssl=context)
    server.answers["/"] = web.reply(web.jpeg())
    yield server, f"https://images.example:{server.port}/", certificate
    server.close()


def test_tls_is_verified(web, tls) -> None:
    server, url, certificate = tls
    config = web.config_for(server)
    trusting = ssl.create_default_context(cafile=str(certificate))
    lookup = {"lookup": lambda _: ["127.0.0.1"]}
    assert web.fetch(url, config, **lookup).error_class == "tls"
    assert web.fetch(url, config, ssl_context=trusting, **lookup).error_class is None
    wrong_name = web.fetch(url.replace("images", "other"), config, ssl_context=trusting, **lookup)
    assert wrong_name.error_class == "tls"
    plain = web.fetch(f"http://images.example:{server.port}/", config, **lookup)
    assert plain.error_class in ("connect", "protocol")


def test_no_tls_socket_outlives_its_loop(web, tls) -> None:
    server, url, certificate = tls
    config = web.config_for(server)
    trusting = ssl.create_default_context(cafile=str(certificate))
    gc.collect()  # what other tests left is not looked for
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(200):  # one in 75 did, as the server closed it just before the end
            assert web.fetch(url, config, ssl_context=trusting, lookup=lambda _: ["127.0.0.1"]).error_class is None
        gc.collect()
    assert [str(item.message) for item in caught if "unclosed" in str(item.message)] == []


def damaged(answer: bytes, chance: random.Random) -> bytes:
    """An answer with some bytes changed, lost or put in."""
    parts = (b"\r\n", b":", b"\0", b"9" * 30, b"-1", b"Content-Length: 5\r\n", b"Location: //[\r\n", b"%", b"\xc3\x28")
    data = bytearray(answer)
    for _ in range(chance.choice((1, 2, 5, 20))):
        at, kind = chance.randrange(min(len(data), 200) or 1), chance.random()
        if kind < 0.4 and data:
            data[at] = chance.randrange(256)
        elif kind < 0.6:
            del data[at : at + chance.randrange(1, 9)]
        elif kind < 0.8:
            data[at:at] = chance.choice(parts)
        else:
            del data[at + 1 :]
    return bytes(data)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.full) for seed in (1, 2))])
def test_any_answer_at_all_is_an_outcome_in_printable_words(server, web, seed: int) -> None:
    chance = random.Random(seed)
    answers = [
        web.reply(web.jpeg()),
        web.reply(web.jpeg(), headers=("Content-Encoding: gzip", "Set-Cookie: a=b", "X-Robots-Tag: a:b:c")),
        web.redirect("http://a.example/\xff"),
        web.reply(status="429 Slow", headers=("Retry-After: 1",)),
        b"HTTP/1.1 100 Continue\r\n\r\n" + web.reply(web.jpeg()),
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\n",
        chunked(web.jpeg()),
    ]
    config = web.config_for(server)
    classes = set()
    for number in range(60):
        server.answers[f"/{number}"] = damaged(chance.choice(answers), chance)
        outcome = web.fetch(server.url(f"/{number}"), config, lookup=lambda _: ["127.0.0.2"])
        assert outcome.error_class is None or outcome.error_message.isprintable()
        classes.add(outcome.error_class)
    assert len(server.requests) >= 60
    assert len(classes) >= 5
