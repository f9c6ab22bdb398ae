"""Opt-out headers in all their forms, and their near misses."""

import dataclasses

import pytest

from headrace.curation.fetch.signals.config import NO_SIGNALS, SignalsConfig
from headrace.curation.fetch.signals.headers import opt_out, user_agent_tokens

TOKENS = user_agent_tokens("Mozilla/5.0 (compatible; headrace)")


def found(signals: SignalsConfig = SignalsConfig(), **headers: list[str]) -> str | None:  # noqa: B008
    return opt_out(lambda name: headers.get(name.replace("-", "_"), []), TOKENS, signals)


@pytest.mark.parametrize(
    "values",
    [
        ["noai"],
        ["NOAI"],
        [" noimageai "],
        ["noindex, nofollow"],
        ["nofollow,noimageindex"],
        ["none"],
        ["all", "noai"],
        ["headrace: noai"],
        ["HeadRace:noai"],
        ["*: noai"],
        ["otherbot: nofollow, headrace: noindex"],
        ["unavailable_after: 25 Jun 2030 15:00:00 PST, noai"],
        ["max-image-preview: large, noindex"],
        ["otherbot: noindex", "noai"],
    ],
)
def test_a_tag_that_speaks_to_us_opts_out(values: list[str]) -> None:
    assert found(x_robots_tag=values) is not None


@pytest.mark.parametrize(
    "values",
    [
        [],
        [""],
        ["all"],
        ["nofollow, noarchive, nosnippet"],
        ["max-image-preview: none"],
        ["otherbot: noai"],
        ["otherbot: noindex, noai"],
        ["noairship"],
        ["unavailable_after: 25 Jun 2030 15:00:00 PST"],
        ["headrace: all"],
    ],
)
def test_a_tag_that_does_not_is_no_opt_out(values: list[str]) -> None:
    assert found(x_robots_tag=values) is None


@pytest.mark.parametrize(("value", "out"), [("1", True), (" 1 ", True), ("0", False), ("", False), ("10", False)])
def test_tdm_reservation(value: str, out: bool) -> None:
    assert (found(tdm_reservation=[value]) is not None) == out


def test_the_evidence_is_one_printable_line() -> None:
    line = found(x_robots_tag=["noai, \x01\xe9" + "a" * 1000])
    assert line is not None
    assert line.isprintable()
    assert line.isascii()
    assert len(line) < 300


def test_the_policy_of_a_reservation_is_kept() -> None:
    line = found(tdm_reservation=["1"], tdm_policy=["https://a.example/policy.json"])
    assert line == "TDM-Reservation: 1, TDM-Policy: https://a.example/policy.json"


@pytest.mark.parametrize(
    ("key", "headers"),
    [
        ("x_robots_tag", {"x_robots_tag": ["noai"]}),
        ("tdm_header", {"tdm_reservation": ["1"]}),
        ("content_usage", {"content_usage": ["search=y", "train-ai=n;why=1"]}),
        ("content_signal", {"content_signal": ["search=yes, AI-Train = no"]}),
    ],
)
def test_each_header_is_obeyed_by_its_own_key(key: str, headers: dict[str, list[str]]) -> None:
    assert found(**headers) is not None
    assert found(dataclasses.replace(NO_SIGNALS, **{key: True}), **headers) is not None
    assert found(dataclasses.replace(SignalsConfig(), **{key: False}), **headers) is None
