"""What a site allows, against a server that says it: asked once, kept for the job, obeyed before any request."""

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest
from yarl import URL

from headrace.curation.fetch.net.fetcher import Fetcher
from headrace.curation.fetch.row import Record
from headrace.curation.fetch.signals import permission
from headrace.curation.fetch.signals.config import NO_SIGNALS, SignalsConfig
from headrace.curation.fetch.signals.paths import PathRules

ROBOTS = "/robots.txt"
TDMREP = "/.well-known/tdmrep.json"


@pytest.fixture
def ask(server, web, tmp_path: Path):
    """`ask(paths, **signals)`: what becomes of rows with these paths in one run of a job."""

    def run(
        paths: list[str], *, folder: Path | None = tmp_path, settings: dict[str, Any] | None = None, **signals: Any
    ):
        config = web.config_for(server, signals=SignalsConfig(**signals), **(settings or {}))

        async def fetch_all() -> list[Any]:
            async with Fetcher(config, permissions=None if folder is None else str(folder)) as fetcher:
                records = [Record(server.url(path)) for path in paths]
                return await asyncio.gather(*(web.outcome_of(fetcher, record, config) for record in records))

        return [(found.error_class, found.error_message) for found in asyncio.run(fetch_all())]

    for number in range(9):
        server.answers[f"/{number}.jpg"] = web.reply(web.jpeg(number))
    return run


def asked(server) -> list[str]:
    return [path for path, _ in server.requests]


def test_a_site_is_asked_once_and_what_it_disallows_is_not_requested(server, web, ask) -> None:
    server.answers[ROBOTS] = web.reply(b"User-agent: headrace\nDisallow: /1")
    found = ask(["/0.jpg", "/1.jpg", "/2.jpg"])
    assert found == [(None, None), ("opted-out", "robots.txt line 2: Disallow: /1"), (None, None)]
    assert sorted(asked(server)) == sorted([ROBOTS, TDMREP, "/0.jpg", "/2.jpg"])


@pytest.mark.parametrize(
    ("key", "path", "body"),
    [
        ("robots_txt", ROBOTS, b"User-agent: *\nDisallow: /"),
        ("content_usage", ROBOTS, b"User-agent: *\nContent-Usage: train-ai=n"),
        ("content_signal", ROBOTS, b"User-agent: *\nContent-Signal: ai-train=no"),
        ("tdm_file", TDMREP, b'[{"location": "/", "tdm-reservation": 1}]'),
    ],
)
def test_each_signal_of_a_site_is_obeyed_by_its_own_key(server, web, ask, key: str, path: str, body: bytes) -> None:
    server.answers[path] = web.reply(body)
    off = {name: False for name in ("robots_txt", "content_usage", "content_signal", "tdm_file") if name != key}
    assert ask(["/0.jpg"])[0][0] == "opted-out"
    assert ask(["/0.jpg"], folder=None, crawl_delay_seconds=0.0, **off)[0][0] == "opted-out"
    assert ask(["/0.jpg"], **{key: False}) == [(None, None)]
    server.requests.clear()
    assert ask(["/0.jpg"], folder=None, settings={"honor_opt_out": False}) == [(None, None)]
    assert asked(server) == ["/0.jpg"]


@pytest.mark.parametrize(
    ("answer", "error_class"),
    [
        ({"status": "404 Not Found"}, None),
        ({"status": "403 Forbidden"}, None),
        ({"status": "410 Gone"}, None),
        ({"status": "204 No Content"}, None),
        ({"status": "302 Found", "headers": ("Location: /robots.txt",)}, None),  # over and over
        ({"status": "302 Found"}, None),
        ({"status": "503 Service Unavailable"}, "http-5xx"),
        ({"status": "500 Internal Server Error"}, "http-5xx"),
        ({"status": "429 Too Many Requests"}, "http-429"),
        ({"body": b"User-agent: *\n", "length": 99}, "truncated"),
    ],
)
def test_a_site_without_the_file_allows_and_one_that_cannot_say_is_left_for_now(
    server, web, ask, answer: dict[str, Any], error_class: str | None
) -> None:
    server.answers[ROBOTS] = web.reply(**answer)
    found = ask(["/0.jpg", "/1.jpg"])
    assert [kind for kind, _ in found] == [error_class] * 2
    if error_class is not None:
        assert found[0][1].startswith("robots.txt: ")
        assert asked(server) == [ROBOTS]
        server.answers[ROBOTS] = web.reply(b"")
        assert ask(["/0.jpg"]) == [(None, None)]  # nothing was kept of it


def test_a_redirected_file_holds_for_the_site_that_redirects(server, web, ask) -> None:
    for number in range(5):
        server.answers[f"/r{number}"] = web.redirect(f"/r{number + 1}")
    server.answers[ROBOTS] = web.redirect("/r1")
    server.answers["/r5"] = web.reply(b"User-agent: *\nDisallow: /0")
    found = ask(["/0.jpg"], settings={"max_redirects": 0})
    assert found == [("opted-out", "robots.txt line 2: Disallow: /0")]


def test_the_file_is_read_to_its_cap_and_no_further(server, web, ask) -> None:
    begin = b"User-agent: *\nDisallow: /0\n#"
    server.answers[ROBOTS] = web.reply(begin + b"x" * (500 * 1024) + b"\nDisallow: /1")
    assert [kind for kind, _ in ask(["/0.jpg", "/1.jpg"])] == ["opted-out", None]


def test_the_target_of_a_redirect_is_asked_about_too(server, web, ask, forbidden) -> None:
    server.answers["/a"] = web.redirect("/private/0.jpg")
    server.answers[ROBOTS] = web.reply(b"User-agent: *\nDisallow: /private")
    assert ask(["/a"]) == [("opted-out", "redirect 1: robots.txt line 2: Disallow: /private")]
    assert "/private/0.jpg" not in asked(server)
    server.answers[ROBOTS] = web.redirect(forbidden.url(ROBOTS))
    assert ask(["/0.jpg"], folder=None)[0][0] == "refused-address"
    assert forbidden.num_connections == 0


def test_a_job_that_goes_on_decides_as_it_did_and_keeps_the_evidence(server, web, ask, tmp_path: Path) -> None:
    text = "User-agent: *\nDisallow: /1\n# caf\u00e9\n"
    server.answers[ROBOTS] = web.reply(text.encode())
    first = ask(["/0.jpg", "/1.jpg"])
    server.answers[ROBOTS] = web.reply(b"User-agent: *\nDisallow: /0")
    server.requests.clear()
    assert ask(["/0.jpg", "/1.jpg"]) == first
    assert asked(server) == ["/0.jpg"]
    (file,) = tmp_path.rglob("*.json")
    record = json.loads(file.read_text("utf-8"))
    robots, tdmrep = record["documents"][ROBOTS], record["documents"][TDMREP]
    assert record["origin"] == server.url("")
    assert (robots["url"], robots["answer"], robots["text"]) == (server.url(ROBOTS), "read", text)
    assert (tdmrep["answer"], tdmrep["text"]) == ("HTTP 404", None)
    assert ask(["/0.jpg"], cache_hours=0.0) != first  # too old: read again
    file.write_text("{")
    assert ask(["/0.jpg"])[0][0] == "opted-out"


def test_crawl_delay_spaces_the_requests_up_to_its_cap(server, web, ask, monkeypatch) -> None:
    server.answers[ROBOTS] = web.reply(b"User-agent: *\nCrawl-delay: 30")
    server.answers["/0.jpg"] = web.reply(web.jpeg())
    asked: list[float] = []
    turns: list[float] = []  # when each was given, as its request may be late
    take_turn = permission.Permission.take_turn

    async def take(self: permission.Permission, *parts: Any) -> None:
        asked.append(asyncio.get_running_loop().time())
        await take_turn(self, *parts)
        turns.append(asyncio.get_running_loop().time())

    monkeypatch.setattr(permission.Permission, "take_turn", take)
    assert ask(["/0.jpg"] * 4, crawl_delay_seconds=0.1) == [(None, None)] * 4
    assert 0.29 < turns[-1] - asked[0] < 80  # three pauses, less what a clock rounds off; without the cap 90 seconds
    assert NO_SIGNALS.reads_robots is False


def test_a_site_of_many_rules_is_judged_beside_the_loop(server, web, ask, monkeypatch) -> None:
    threads = []

    def refusal(self: PathRules, url: Any, judge: Any = PathRules.refusal) -> str | None:
        threads.append(threading.current_thread() is threading.main_thread())
        return judge(self, url)

    monkeypatch.setattr(PathRules, "refusal", refusal)
    server.answers[ROBOTS] = web.reply(
        b"User-agent: *\nDisallow: /0\n" + b"Disallow: /*x\n" * permission.MAX_QUICK_RULES
    )
    assert ask(["/0.jpg", "/1.jpg"]) == [("opted-out", "robots.txt line 2: Disallow: /0"), (None, None)]
    assert threads
    assert not any(threads)


def test_what_is_known_of_sites_is_bounded_by_its_rules_and_read_again(monkeypatch) -> None:
    monkeypatch.setattr(permission, "MAX_RULES", 10)
    monkeypatch.setattr(permission, "MAX_SITES", 6)
    read = []

    async def robots_of(url: URL) -> bytes:
        read.append(url.host)
        return b"User-agent: *\n" + (
            b"Disallow: /x\n" * 2 if url.host != "large.example" else b"Disallow: /x\nDisallow: /" + b"y" * 4200
        )

    async def visit() -> int:
        known = permission.Permission(SignalsConfig(tdm_file=False), robots_of, user_agent="mybot", folder=None)
        for host in ("large.example", "a.example", "b.example", "c.example", "d.example", "a.example", "large.example"):
            assert (await known.ask(URL(f"http://{host}/x.jpg"))).refusal is not None
        for number in range(20):
            await known.take_turn(URL(f"http://{number}.example/"), 1e-6)
        known.close()
        return len(known._turns)

    assert asyncio.run(visit()) <= 7
    assert read == ["large.example", "a.example", "b.example", "c.example", "d.example", "large.example"]
