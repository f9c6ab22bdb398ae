"""Domains are named without what stands before them; what is none is not named."""

import pytest

from headrace.curation.report.domains import ADDRESS, NONE, domain_of


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("images.example.com", "example.com"),
        ("EXAMPLE.com.", "example.com"),
        ("a.b.example.co.uk", "example.co.uk"),
        ("static.uol.com.br", "uol.com.br"),
        ("t.co", "t.co"),
        ("jane-doe.blogspot.com", "blogspot.com"),
        ("b\u00fccher.example.de", "example.de"),
        ("192.0.2.7", ADDRESS),
        ("[2001:db8::1]", ADDRESS),
        ("localhost", NONE),
        ("", NONE),
        ("<script>.com", NONE),
        ("a\u202eb.com", NONE),
    ],
)
def test_a_host_has_the_domain_that_was_registered(host: str, expected: str) -> None:
    assert domain_of(host) == expected
