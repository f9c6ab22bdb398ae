"""What curl makes of odd answers, we make of them; where bytes may be missing or another's, we do not."""

import gzip
import io
import shutil
import subprocess
import zlib

import pytest
from PIL import Image


def picture() -> bytes:
    sink = io.BytesIO()
    Image.linear_gradient("L").resize((64, 48)).convert("RGB").save(sink, "JPEG", quality=90)
    return sink.getvalue()


IMAGE = picture()
SIZE = len(IMAGE)
OK = b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n"
LENGTH = b"Content-Length: %d\r\n" % SIZE
CLOSE = b"Connection: close\r\n\r\n"
CHUNKED = b"Transfer-Encoding: chunked\r\n"


def chunks(end: bytes = b"0\r\n\r\n", size: str = "{:x}", tail: bytes = b"\r\n") -> bytes:
    parts = [IMAGE[start : start + 300] for start in range(0, SIZE, 300)]
    return b"".join(size.format(len(part)).encode() + b"\r\n" + part + tail for part in parts) + end


def raw_deflate(data: bytes) -> bytes:
    pack = zlib.compressobj(9, zlib.DEFLATED, -15)
    return pack.compress(data) + pack.flush()


def headers(*lines: bytes) -> bytes:
    return OK + b"".join(lines) + LENGTH + CLOSE + IMAGE


def coded(name: bytes, body: bytes) -> bytes:
    return OK + b"Content-Encoding: " + name + b"\r\n" + CLOSE + body


TAKEN = {
    "plain": OK + LENGTH + CLOSE + IMAGE,
    "no length": OK + CLOSE + IMAGE,
    "HTTP/1.0 without length": b"HTTP/1.0 200 OK\r\n\r\n" + IMAGE,
    "no reason": b"HTTP/1.1 200\r\n" + LENGTH + CLOSE + IMAGE,
    "a space for a reason": b"HTTP/1.1 200 \r\n" + LENGTH + CLOSE + IMAGE,
    "a reason of other letters": b"HTTP/1.1 200 \xe9\x01\r\n" + LENGTH + CLOSE + IMAGE,
    "lower case": b"http/1.1 200 ok\r\n" + LENGTH + CLOSE + IMAGE,
    "HTTP/2": b"HTTP/2 200\r\n" + LENGTH + CLOSE + IMAGE,
    "bare line feeds": b"HTTP/1.1 200 OK\nContent-Length: %d\nConnection: close\n\n" % SIZE + IMAGE,
    "one bare line feed": headers(b"Server: x\n"),
    "a control character": headers(b"Set-Cookie: a=b\x01c; path=/\r\n"),
    "latin-1": headers(b"X-Name: Caf\xe9\r\n"),
    "space in a name": headers(b"X-Thing Name: v\r\n"),
    "space before the colon": headers(b"X-Cache : HIT\r\n"),
    "no name": headers(b": value\r\n"),
    "no value": headers(b"X-Empty:\r\n"),
    "folded": headers(b"X-Long: one\r\n two\r\n\tthree\r\n"),
    "one length twice": headers(LENGTH),
    "a list of one length": OK + b"Content-Length: %d, %d\r\n" % (SIZE, SIZE) + CLOSE + IMAGE,
    "length with zeros": OK + b"Content-Length: 000%d\r\n" % SIZE + CLOSE + IMAGE,
    "length with plus": OK + b"Content-Length: +%d\r\n" % SIZE + CLOSE + IMAGE,
    "length and chunks": OK + LENGTH + CHUNKED + CLOSE + chunks(),
    "wrong length and chunks": OK + b"Content-Length: 7\r\n" + CHUNKED + CLOSE + chunks(),
    "identity": headers(b"Transfer-Encoding: identity\r\n"),
    "identity coding": headers(b"Content-Encoding: identity\r\n"),
    "chunks": OK + CHUNKED + CLOSE + chunks(),
    "chunks, upper case and padded": OK + b"transfer-encoding: Chunked\r\n" + CLOSE + chunks(size="{:06X} "),
    "chunks with extensions and trailers": OK
    + CHUNKED
    + CLOSE
    + chunks(size='{:x};a=b;c="d"', end=b"0;x\r\nX-Sum: 1\r\nY: 2\r\n\r\n"),
    "chunks with bare line feeds": OK + CHUNKED + CLOSE + chunks(tail=b"\n", end=b"0\n\n"),
    "bytes behind": OK + LENGTH + CLOSE + IMAGE + b"\r\n",
    "a comment behind": OK + LENGTH + CLOSE + IMAGE + b"<!-- cached -->\n",
    "a comment behind, kept open": OK + LENGTH + b"\r\n" + IMAGE + b"<!-- cached -->\n",
    "another answer behind": OK + LENGTH + b"\r\n" + IMAGE + OK + b"Content-Length: 4\r\n\r\nevil",
    "201": b"HTTP/1.1 201 Created\r\n" + LENGTH + CLOSE + IMAGE,
    "202": b"HTTP/1.1 202 Accepted\r\n" + LENGTH + CLOSE + IMAGE,
    "203": b"HTTP/1.1 203 Non-Authoritative\r\n" + LENGTH + CLOSE + IMAGE,
    "226": b"HTTP/1.1 226 IM Used\r\n" + LENGTH + CLOSE + IMAGE,
    "206 with all": b"HTTP/1.1 206 P\r\nContent-Range: bytes 0-%d/%d\r\n" % (SIZE - 1, SIZE) + LENGTH + CLOSE + IMAGE,
    "100 first": b"HTTP/1.1 100 Continue\r\n\r\n" + OK + LENGTH + CLOSE + IMAGE,
    "103 first": b"HTTP/1.1 103 Early Hints\r\nLink: </x.css>\r\n\r\n" + OK + LENGTH + CLOSE + IMAGE,
    "gzip": coded(b"gzip", gzip.compress(IMAGE)),
    "x-gzip": coded(b"x-gzip", gzip.compress(IMAGE)),
    "gzip without its check sum": coded(b"gzip", gzip.compress(IMAGE)[:-8]),
    "deflate": coded(b"deflate", zlib.compress(IMAGE)),
    "raw deflate": coded(b"deflate", raw_deflate(IMAGE)),
    "gzip of gzip": coded(b"gzip, gzip", gzip.compress(gzip.compress(IMAGE))),
    "gzip as a transfer coding": OK + b"Transfer-Encoding: gzip\r\n" + CLOSE + gzip.compress(IMAGE),
}
"""Answers that curl takes, too."""

TAKEN_BEYOND_CURL = {
    "a line without a colon": headers(b"X-XSS-Protection=1;\r\n"),
    "a length without a number": OK + b"Content-Length: \r\n" + CLOSE + IMAGE,
    "NUL in a header": headers(b"X-A: \0\r\n"),
    "nothing after the last chunk": OK + CHUNKED + CLOSE + chunks(end=b"0\r\n"),
    "gzip in two members": coded(b"gzip", gzip.compress(IMAGE[:200]) + gzip.compress(IMAGE[200:])),
    "gzip with zeros behind": coded(b"gzip", gzip.compress(IMAGE) + bytes(8)),
    "gzip with rubbish behind": coded(b"gzip", gzip.compress(IMAGE) + b"<!-- -->"),
}
"""Every byte of the image has come; urllib or browsers take them."""

REFUSED = {
    "two lengths": (OK + LENGTH + b"Content-Length: 5\r\n" + CLOSE + IMAGE, "protocol"),
    "a list of two lengths": (OK + b"Content-Length: %d, 5\r\n" % SIZE + CLOSE + IMAGE, "protocol"),
    "length is no number": (OK + b"Content-Length: many\r\n" + CLOSE + IMAGE, "protocol"),
    "negative length": (OK + b"Content-Length: -5\r\n" + CLOSE + IMAGE, "protocol"),
    "folded length": (OK + b"Content-Length: %d\r\n 5\r\n" % SIZE + CLOSE + IMAGE, "protocol"),
    "chunked, then gzip": (OK + b"Transfer-Encoding: chunked, gzip\r\n" + CLOSE + chunks(), "protocol"),
    "chunked twice": (OK + CHUNKED + CHUNKED + CLOSE + chunks(), "protocol"),
    "unknown transfer coding": (OK + b"Transfer-Encoding: br, chunked\r\n" + CLOSE + chunks(), "protocol"),
    "chunk size is no number": (OK + CHUNKED + CLOSE + chunks(size="0x{:x}"), "protocol"),
    "negative chunk size": (OK + CHUNKED + CLOSE + chunks(size="-{:x}"), "protocol"),
    "chunk longer than it says": (OK + CHUNKED + CLOSE + b"5\r\n" + IMAGE + b"\r\n0\r\n\r\n", "protocol"),
    "chunk without its line end": (OK + CHUNKED + CLOSE + chunks(tail=b""), "protocol"),
    "no last chunk": (OK + CHUNKED + CLOSE + chunks(end=b""), "truncated"),
    "the last chunk's size is cut": (OK + CHUNKED + CLOSE + chunks(end=b"0"), "truncated"),
    "cut in a chunk": (OK + CHUNKED + CLOSE + chunks()[:-20], "truncated"),
    "length too long": (OK + b"Content-Length: %d\r\n" % (SIZE + 3) + CLOSE + IMAGE, "truncated"),
    "length cuts the image": (OK + b"Content-Length: %d\r\n" % (SIZE - 40) + CLOSE + IMAGE, "truncated"),
    "cut in the headers": (OK + b"X-A: b", "truncated"),
    "gzip is cut": (coded(b"gzip", gzip.compress(IMAGE)[:-12]), "truncated"),
    "second gzip member is cut": (coded(b"gzip", gzip.compress(IMAGE) + gzip.compress(b"x")[:-10]), "truncated"),
    "gzip with a wrong check sum": (coded(b"gzip", gzip.compress(IMAGE)[:-8] + bytes(8)), "protocol"),
    "deflate with a wrong check sum": (coded(b"deflate", zlib.compress(IMAGE)[:-4] + bytes(4)), "protocol"),
    "gzip is no gzip": (coded(b"gzip", IMAGE), "protocol"),
    "deflate is no deflate": (coded(b"deflate", IMAGE), "protocol"),
    "three codings": (coded(b"gzip, gzip, gzip", gzip.compress(gzip.compress(gzip.compress(IMAGE)))), "protocol"),
    "206 with a part": (
        b"HTTP/1.1 206 P\r\nContent-Range: bytes 0-%d/%d\r\n" % (SIZE - 1, SIZE + 9) + LENGTH + CLOSE + IMAGE,
        "protocol",
    ),
    "206 from the middle": (
        b"HTTP/1.1 206 P\r\nContent-Range: bytes 5-%d/%d\r\n" % (SIZE + 4, SIZE + 5) + LENGTH + CLOSE + IMAGE,
        "protocol",
    ),
    "206 of unknown size": (b"HTTP/1.1 206 P\r\nContent-Range: bytes 0-9/*\r\n" + LENGTH + CLOSE + IMAGE, "protocol"),
    "206 without a range": (b"HTTP/1.1 206 P\r\n" + LENGTH + CLOSE + IMAGE, "protocol"),
    "101": (b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\n\r\n" + OK + LENGTH + CLOSE + IMAGE, "protocol"),
    "endless 100": (b"HTTP/1.1 100 Continue\r\n\r\n" * 50 + OK + LENGTH + CLOSE + IMAGE, "protocol"),
    "status of four digits": (b"HTTP/1.1 2000 OK\r\n" + LENGTH + CLOSE + IMAGE, "protocol"),
    "no status": (b"HTTP/1.1 OK\r\n" + LENGTH + CLOSE + IMAGE, "protocol"),
    "ICY": (b"ICY 200 OK\r\n" + LENGTH + CLOSE + IMAGE, "protocol"),
    "HTTP/0.9": (IMAGE, "protocol"),
    "a line before the body": (OK + CLOSE + b"\r\n" + IMAGE, "not-image"),
}


@pytest.mark.parametrize("name", [*TAKEN, *TAKEN_BEYOND_CURL])
def test_an_answer_with_one_meaning_gives_its_image(server, web, name: str) -> None:
    server.answers["/"] = {**TAKEN, **TAKEN_BEYOND_CURL}[name]
    outcome = web.fetch(server.url(), web.config_for(server))
    assert (outcome.error_class, outcome.error_message) == (None, None)
    assert outcome.size == SIZE


@pytest.mark.parametrize("name", REFUSED)
def test_an_answer_that_may_lack_bytes_or_hold_others_is_refused(server, web, name: str) -> None:
    server.answers["/"], error_class = REFUSED[name]
    outcome = web.fetch(server.url(), web.config_for(server))
    assert outcome.error_class == error_class
    assert outcome.error_message.isprintable()


def test_curl_takes_what_we_take(server) -> None:
    if shutil.which("curl") is None:
        return  # the table says what it takes
    wrong = []
    for name, answer in TAKEN.items():
        server.answers["/"] = answer
        command = ["curl", "-s", "--compressed", "--tr-encoding", "-m", "10", server.url()]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.stdout != IMAGE or done.returncode:
            wrong.append(f"{name}: exit code {done.returncode}, {len(done.stdout)} bytes")
    assert wrong == []


def test_an_opt_out_in_an_odd_line_is_still_one(server, web) -> None:
    lines = (b"X-Robots-Tag : noai\r\n", b"X-Robots-Tag:\r\n noai\r\n", b"x-robots-tag: a,\n\tnoai\n")
    for number, line in enumerate(lines):
        server.answers[f"/{number}"] = headers(line)
        assert web.fetch(server.url(f"/{number}"), web.config_for(server)).error_class == "opted-out", line
