"""Servers that choose a format by Accept send the original, as they did to those who made the list."""

import hashlib

import pytest

from headrace.curation.fetch.config import FetchConfig


async def negotiate(server, writer) -> None:
    """A server of images with automatic format: the smallest one that Accept names."""
    _, headers = server.requests[-1]
    accept = headers.get("accept", "")
    seed = 1 if "image/avif" in accept else 2 if "image/webp" in accept else 0
    writer.write(server.made(seed))


@pytest.fixture
def negotiating(server, web):
    server.made = lambda seed: web.reply(web.jpeg(seed), headers=("Vary: Accept",))
    server.answers["/"] = negotiate
    return server


@pytest.mark.parametrize(("accept", "seed"), [("*/*", 0), (None, 0), ("image/webp,*/*;q=0.8", 2), ("image/avif", 1)])
def test_accept_decides_what_a_negotiating_server_sends(negotiating, web, accept: str | None, seed: int) -> None:
    config = web.config_for(negotiating, accept=accept)
    outcome = web.fetch(negotiating.url(), config)
    assert outcome.sha256 == hashlib.sha256(web.jpeg(seed)).hexdigest()
    assert negotiating.requests[0][1].get("accept") == accept


def test_the_default_gets_the_original_that_the_list_was_made_of(negotiating, web) -> None:
    expected = hashlib.sha256(web.jpeg(0)).hexdigest()
    assert web.fetch(negotiating.url(), web.config_for(negotiating), expected_sha256=expected).error_class is None


@pytest.mark.parametrize("accept", ["", " ", "a\r\nHost: b", "image/\xe9", "a" * 600, " */*"])
def test_an_accept_that_cannot_stand_in_a_request_is_refused(accept: str) -> None:
    with pytest.raises(ValueError, match="accept must be"):
        FetchConfig(accept=accept)
