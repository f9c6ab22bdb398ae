"""robots.txt: which lines speak to us, what they say of a URL, and which line is the evidence."""

import json
import time

import pytest
from yarl import URL

from headrace.curation.fetch.signals.robots import Robots, robots_agent
from headrace.curation.fetch.signals.tdmrep import Tdmrep

AGENTS = ("headrace", "mybot")
EXAMPLE_OF_AIPREF = """
User-Agent: *
Allow: /
Disallow: /never/
Content-Usage: train-ai=n
Content-Usage: /ai-ok/ train-ai=y

User-Agent: ExampleBot
Allow: /
Content-Usage: train-ai=y
"""


def url(path: str) -> URL:
    return URL(f"http://a.example{path}", encoded=True)


@pytest.mark.parametrize(
    ("text", "path", "line"),
    [
        ("User-agent: *\nDisallow: /private", "/private/a.jpg", 2),
        ("User-agent: *\nDisallow: /private", "/public/a.jpg", None),
        ("user-AGENT : *\r\n disallow:/a # why\r\n", "/a.jpg", 2),
        ("\ufeffUser-agent: *\rDisallow: /a", "/a", 2),
        ("User-agent: *\nDisallow:", "/a", None),
        ("User-agent: *\nDisallow: /\nAllow: /img/", "/img/a.jpg", None),
        ("User-agent: *\nDisallow: /img/\nAllow: /img/", "/img/a.jpg", None),
        ("User-agent: *\nDisallow: /*.jpg$", "/img/a.jpg", 2),
        ("User-agent: *\nDisallow: /*.jpg$", "/img/a.jpg?w=1", None),
        ("User-agent: *\nDisallow: /*?w=", "/img/a.jpg?w=1", 2),
        ("User-agent: *\nDisallow: /a%2Fb\nDisallow: /%7Eme", "/~me/1.jpg", 3),
        ("User-agent: *\nDisallow: /\u00fc", "/%C3%BC/1.jpg", 2),
        ("User-agent: *\nDisallow: //cdn/", "//cdn/1.jpg", 2),
        ("User-agent: headrace\nAllow: /\n\nUser-agent: *\nDisallow: /", "/a", None),
        ("User-agent: *\nAllow: /\n\nUser-agent: HeadRace/2.0\nDisallow: /", "/a", 5),
        ("User-agent: mybot\nUser-agent: other\nDisallow: /", "/a", 3),
        ("User-agent: head\nDisallow: /\nUser-agent: headracer\nDisallow: /", "/a", None),
        (
            "User-agent: headrace\nDisallow: /a\nUser-agent: *\nDisallow: /b\nUser-agent: headrace\nDisallow: /c",
            "/c",
            6,
        ),
        ("User-agent: headrace\nDisallow: /a\nUser-agent: *\nDisallow: /b", "/b", None),
        ("User-agent: headrace\n\nUser-agent: *\nDisallow: /", "/a", 4),  # one group of two names
        ("User-agent: *\nCrawl-delay: 5\nUser-agent: other\nDisallow: /", "/a", None),
        ("User-agent: *\nSitemap: http://a/s\nDisallow: /a\n\n\nDisallow: /b", "/b", 6),
        ("Disallow: /", "/a", None),
        ("<html><body>User-agent: *</body>\nDisallow: /", "/a", None),
        ("User-agent *\nDisallow /a", "/a", 2),
        ("User-agent: *\nDissalow: /a", "/a", 2),
    ],
)
def test_the_rules_of_rfc_9309(text: str, path: str, line: int | None) -> None:
    found = Robots(text, AGENTS).disallows(url(path))
    assert (found or "").startswith("" if line is None else f"robots.txt line {line}: ")
    assert (found is None) == (line is None)


def test_the_groups_of_further_crawlers_bind_where_they_are_named() -> None:
    text = "User-agent: *\nAllow: /\n\nUser-agent: GPTBot\nUser-agent: CCBot\nDisallow: /art/"
    assert (
        Robots(text, AGENTS, ("ccbot", "nobody")).disallows(url("/art/1.jpg")) == "robots.txt line 6: Disallow: /art/"
    )
    assert Robots(text, AGENTS, ("nobody",)).disallows(url("/art/1.jpg")) is None


@pytest.mark.parametrize(
    ("agents", "path", "reserved"),
    [
        (("headrace",), "/test", True),
        (("headrace",), "/ai-ok/test", False),
        (("examplebot",), "/test", False),
    ],
)
def test_the_example_of_the_draft_of_content_usage(agents: tuple[str, ...], path: str, reserved: bool) -> None:
    assert (Robots(EXAMPLE_OF_AIPREF, agents).reserves(url(path), "content-usage") is not None) == reserved


@pytest.mark.parametrize(
    ("lines", "path", "reserved"),
    [
        ("Content-Usage: /a train-ai=n\nContent-Usage: /a train-ai=y", "/a", True),
        ("Content-Usage: /a\ttrain-ai=n, search=y", "/a/1.jpg", True),
        ("Content-Usage: / train-ai=n\nContent-Usage: /a search=y", "/a/1.jpg", False),
        ("Content-Usage: train-ai=n\nContent-Usage: / train-ai=y", "/a", False),
        ("Content-Usage: /*.jpg$ train-ai=n", "/a/1.jpg", True),
        ("Content-Usage: ai-train=no", "/a", False),
    ],
)
def test_the_longest_path_of_content_usage_decides(lines: str, path: str, reserved: bool) -> None:
    robots = Robots(f"User-agent: *\n{lines}", AGENTS)
    assert (robots.reserves(url(path), "content-usage") is not None) == reserved


def test_a_content_signal_of_cloudflares_managed_file() -> None:
    text = "# a condition\nUser-agent: *\nContent-signal: search=yes,ai-train=no\nAllow: /\n\nUser-agent: GPTBot"
    robots = Robots(f"{text}\nDisallow: /", AGENTS)
    assert robots.disallows(url("/a")) is None
    assert robots.reserves(url("/a"), "content-usage") is None
    line = "robots.txt line 3: Content-signal: search=yes,ai-train=no"
    assert robots.reserves(url("/a"), "content-signal") == line


@pytest.mark.parametrize(("value", "seconds"), [("1.5", 1.5), ("-1", 0), ("inf", 0), ("nan", 0), ("soon", 0), ("", 0)])
def test_crawl_delay(value: str, seconds: float) -> None:
    assert Robots(f"User-agent: *\nCrawl-delay: {value}", AGENTS).crawl_delay_seconds == seconds


@pytest.mark.parametrize(
    ("user_agent", "agent"),
    [
        ("Mozilla/5.0 (compatible; headrace)", "headrace"),
        ("mybot/1.0 (+https://a.example)", "mybot"),
        ("img2dataset", "img2dataset"),
        ("0", None),
    ],
)
def test_the_name_that_a_robots_txt_may_use(user_agent: str, agent: str | None) -> None:
    assert robots_agent(user_agent) == agent


def test_a_file_of_many_rules_is_judged_quickly_and_its_evidence_is_one_line() -> None:
    text = "User-agent: *\n" + "".join(f"Disallow: /{number}/\x1b[31m{'x' * 300}\n" for number in range(1500))
    found = Robots(text, AGENTS).disallows(url(f"/7/%1B[31m{'x' * 300}"))
    assert found is not None
    assert found.isprintable()
    assert len(found) < 300


def test_a_hostile_pattern_is_judged_in_no_time() -> None:
    text = f"User-agent: *\nDisallow: /{'*a' * 40}*b"
    before = time.process_time()
    assert Robots(text, AGENTS).disallows(url("/" + "a" * 2000)) is None
    assert (
        Tdmrep(json.dumps({"location": f"/{'*a' * 40}*b", "tdm-reservation": 1})).reserves(url("/" + "a" * 2000))
        is None
    )
    assert time.process_time() - before < 10  # by a regular expression: longer than the world
