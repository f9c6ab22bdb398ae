"""The part of the small web that never arrives, or should not: one function a kind, each with its near-misses.

A near-miss here is a fetch that looks like the fault and is fine: a slow host that answers in time, a redirect to an
address that is allowed, a JPEG served as text.
"""

import dataclasses

from headrace.demo.encode import encode, jpeg_bomb, png_bomb, resized
from headrace.demo.pictures import picture_reply
from headrace.demo.web import Entry, Planner, Reply

HTML = b"<!doctype html><html><head><title>Not here</title></head><body><p>The picture has moved.</p></body></html>"
JPEG_TYPE = ("Content-Type", "image/jpeg")
# The recipe of the demo gives an answer up that has had under 8,000 bytes for eight seconds.
SLOW_SECONDS, IN_TIME_SECONDS = 120.0, 1.5


def plan_faults(planner: Planner) -> None:
    """Plant every kind of this file."""
    _plan_dead_links(planner)
    _plan_wrong_bytes(planner)
    _plan_truncated(planner)
    _plan_large(planner)
    _plan_slow(planner)
    _plan_private(planner)
    _plan_schemes(planner)
    _plan_opted_out(planner)


def _add(
    planner: Planner,
    kind: str,
    reply: Reply | None,
    *,
    fails_as: tuple[str, ...] = (),
    host: str = "server",
    url: str = "",
) -> None:
    """Add a row with a true caption. `fails_as` names the classes of failure that count; none: it must survive.

    A reply without a body gets the picture of the caption.
    """
    scene, pixels = planner.scene(kind)
    if reply is not None and not reply.body:
        reply = dataclasses.replace(reply, body=encode(pixels))
    planner.add(
        Entry(
            url=url or planner.url(kind, host=host),
            caption=planner.caption(scene),
            kind=kind,
            fault=bool(fails_as),
            found_by=tuple(name if name == "decode" else f"fetch:{name}" for name in fails_as),
            reply=reply,
        )
    )


def _plan_dead_links(planner: Planner) -> None:
    for status in (404, 410, 403, 404):
        _add(planner, "http_error", Reply(status=status, body=HTML), fails_as=("http-4xx",))
    for status in (500, 503):
        _add(planner, "http_error", Reply(status=status, body=HTML), fails_as=("http-5xx",))
    for failures in (1, 1, 2):  # trying again works
        _add(planner, "http_error", Reply(failures=failures))
    for _ in range(3):
        _add(planner, "refused_port", None, fails_as=("connect",), host="closed")
    for number in range(3):
        _add(
            planner, "unresolvable", None, fails_as=("dns",), url=f"http://host-{number}.headrace.invalid/{number}.jpg"
        )
    for url in ("not a url", "http://", "http://{server}:x/1.jpg"):
        _add(planner, "bad_url", None, fails_as=("bad-url",), url=url)
    path = planner.url("http_error")  # odd, but a URL
    _add(planner, "bad_url", Reply(), url=path.replace(".jpg", "%20of%20a%20star.jpg?size=large&x=%C3%A9"))
    for _ in range(2):
        url = planner.url("redirect_loop")
        reply = Reply(status=302, body=b"moved", headers=(("Location", url),))
        _add(planner, "redirect_loop", reply, fails_as=("redirects",), url=url)


def _plan_wrong_bytes(planner: Planner) -> None:
    for body in (HTML, HTML * 40, b"<svg xmlns='http://www.w3.org/2000/svg'/>", b'{"error": "gone"}', HTML):
        _add(planner, "html_as_jpeg", Reply(body=body), fails_as=("not-image",))
    for kind in ("text/html", "application/octet-stream"):  # a picture, whatever the server calls it
        _add(planner, "html_as_jpeg", Reply(headers=(("Content-Type", kind),)))
    for _ in range(2):
        _add(planner, "empty", Reply(manner="empty"), fails_as=("empty",))
    for _ in range(3):
        _add(planner, "empty", Reply(manner="chunked"))


def _plan_truncated(planner: Planner) -> None:
    for image_format, share in (("jpeg", 0.7), ("jpeg", 0.95), ("png", 0.6), ("webp", 0.5)):
        data = encode(planner.scene("truncated")[1], image_format)
        reply = picture_reply(data[: int(len(data) * share)], image_format)
        _add(planner, "truncated", reply, fails_as=("truncated", "decode"))
    for _ in range(2):  # the server promises more bytes than it sends
        _add(planner, "truncated", Reply(manner="cut"), fails_as=("truncated", "protocol", "connect"))
    scene, pixels = planner.scene("truncated")
    whole = Entry(
        url=planner.url("truncated"),
        caption=planner.caption(scene),
        kind="truncated",
        fault=False,
        reply=picture_reply(encode(pixels, progressive=True)),
    )
    planner.add(whole)


def _plan_large(planner: Planner) -> None:
    pixels = planner.scene("bomb")[1]
    bodies = (
        png_bomb(60_000, 60_000),
        png_bomb(1 << 30, 1 << 30),
        jpeg_bomb(pixels, 65_000, 65_000),
        png_bomb(200_000, 9_000),
    )
    for body in bodies:
        _add(planner, "bomb", Reply(body=body), fails_as=("bomb",))
    for _ in range(2):  # large, and allowed
        scene, pixels = planner.scene("bomb", size=(330, 250))
        reply = picture_reply(encode(resized(pixels, 6.0), quality=80))
        planner.add(
            Entry(url=planner.url("bomb"), caption=planner.caption(scene), kind="bomb", fault=False, reply=reply)
        )
    _add(planner, "too_large", Reply(manner="claimed"), fails_as=("too-large",))
    _add(planner, "too_large", Reply(manner="endless"), fails_as=("too-large",))


def _plan_slow(planner: Planner) -> None:
    for _ in range(3):
        _add(planner, "slow_host", Reply(manner="drip", seconds=SLOW_SECONDS), fails_as=("timeout",), host="slow")
    for _ in range(2):
        _add(planner, "slow_host", Reply(manner="drip", seconds=IN_TIME_SECONDS), host="slow")


def _plan_private(planner: Planner) -> None:
    for status in (301, 302, 307, 308):
        reply = Reply(status=status, body=b"moved", headers=(("Location", "http://{private}/inside.jpg"),))
        _add(planner, "private_redirect", reply, fails_as=("refused-address",))
    for status in (301, 302, 303):
        target = planner.url("private_redirect")
        _add(planner, "private_redirect", Reply(), url=target)
        reply = Reply(status=status, body=b"moved", headers=(("Location", target.split("}", 1)[1]),))
        _add_redirect(planner, reply, target)
    # One address written in five ways.
    for host in ("{private}", "2130706434:{private_port}", "0x7f000002:{private_port}", "127.2:{private_port}"):
        _add(
            planner,
            "private_address",
            None,
            fails_as=("refused-address", "bad-url", "dns"),
            url=f"http://{host}/in.jpg",
        )
    url = "http://[::ffff:127.0.0.2]:{private_port}/in.jpg"
    _add(planner, "private_address", None, fails_as=("refused-address", "bad-url", "dns"), url=url)


def _add_redirect(planner: Planner, reply: Reply, target: str) -> None:
    """Add a second row that leads to the picture of the row just added; the two are copies of each other."""
    last = planner.entries[-1]
    assert last.url == target
    group = f"redirect-{len(planner.entries)}"
    planner.entries[-1] = dataclasses.replace(last, group=group)
    planner.add(
        dataclasses.replace(
            last,
            url=planner.url("private_redirect"),
            kind="copy_exact",
            fault=True,
            found_by=("exact_duplicates",),
            group=group,
            reply=reply,
        )
    )


def _plan_schemes(planner: Planner) -> None:
    urls = (
        "file://{secret}",
        "FILE://{secret}",
        "file:///etc/hostname",
        "file:{secret}",
        "ftp://{server}/picture.jpg",
        "data:image/gif;base64,R0lGODlhAQABAAAAACwAAAAAAQABAAA=",
        "gopher://{private}/1",
    )
    for url in urls:
        _add(planner, "file_scheme", None, fails_as=("refused-scheme", "bad-url"), url=url)
    for _ in range(2):  # the same scheme in capitals
        url = planner.url("file_scheme")
        _add(planner, "file_scheme", Reply(), url=url.replace("http://", "HTTP://"))
    reply = Reply(status=302, body=b"moved", headers=(("Location", "file://{secret}"),))
    _add(planner, "file_scheme", reply, fails_as=("refused-scheme",))


def _plan_opted_out(planner: Planner) -> None:
    name = "X-Robots-Tag"
    for value in ("noai", "noimageai", "NoAI, noImageAI", "noindex", "nofollow, noimageindex", "max-snippet: 5, noai"):
        _add(planner, "opted_out", Reply(headers=(JPEG_TYPE, (name, value))), fails_as=("opted-out",))
    for value in ("all", "index, follow", "max-image-preview: large", "nofollow"):
        _add(planner, "opted_out", Reply(headers=(JPEG_TYPE, (name, value))))
