"""Opt-out headers in all their forms, and their near misses."""

import pytest

from headrace.curation.fetch.net.opt_out import opt_out, user_agent_tokens

TOKENS = user_agent_tokens("Mozilla/5.0 (compatible; headrace)")


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
    assert opt_out(values, [], TOKENS) is not None


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
    assert opt_out(values, [], TOKENS) is None


@pytest.mark.parametrize(("value", "out"), [("1", True), (" 1 ", True), ("0", False), ("", False), ("10", False)])
def test_tdm_reservation(value: str, out: bool) -> None:
    assert (opt_out([], [value], TOKENS) is not None) == out


def test_the_evidence_is_one_printable_line() -> None:
    found = opt_out(["noai, \x01\xe9" + "a" * 1000], [], TOKENS)
    assert found is not None
    assert found.isprintable()
    assert found.isascii()
    assert len(found) < 300
