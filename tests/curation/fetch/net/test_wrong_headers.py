"""Headers that are wrong and harmless cost no image."""

import pytest


@pytest.mark.parametrize("coding", ["UTF-8", "none", "identity", "binary, utf-8", ""])
def test_a_content_encoding_that_is_no_coding_changes_nothing(server, web, coding: str) -> None:
    server.answers["/"] = web.reply(web.jpeg(), headers=(f"Content-Encoding: {coding}",))
    assert web.fetch(server.url(), web.config_for(server)).error_class is None


@pytest.mark.parametrize("coding", ["br", "zstd", "utf-8, br", "gzip, gzip"])
def test_a_coding_that_we_cannot_undo_is_named(server, web, coding: str) -> None:
    server.answers["/"] = web.reply(web.jpeg(), headers=(f"Content-Encoding: {coding}",))
    outcome = web.fetch(server.url(), web.config_for(server))
    assert outcome.error_class == "protocol"
    assert coding.split(",")[0] in outcome.error_message


def test_a_long_header_costs_no_image_up_to_a_cap(server, web) -> None:
    for size, error_class in ((9_000, None), (30_000, None), (100_000, "protocol")):
        server.answers["/"] = web.reply(web.jpeg(), headers=("Content-Security-Policy: " + "a" * size,))
        assert web.fetch(server.url(), web.config_for(server)).error_class == error_class, size
