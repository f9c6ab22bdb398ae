"""/.well-known/tdmrep.json: the first rule whose location matches decides; what cannot be read says nothing."""

import json

import pytest
from yarl import URL

from headrace.curation.fetch.signals.tdmrep import Tdmrep

RULES = [
    {"location": "/open/*", "tdm-reservation": 0},
    {"location": "/*.png$", "tdm-reservation": "1"},
    {"location": "/", "tdm-reservation": 1, "tdm-policy": "https://a.example/policy.json"},
]


def reserved(rules: object, path: str) -> str | None:
    text = rules if isinstance(rules, str) else json.dumps(rules)
    return Tdmrep(text).reserves(URL(f"http://a.example{path}", encoded=True))


@pytest.mark.parametrize(
    ("path", "line"),
    [
        ("/open/a.png", None),
        ("/a.png", "tdmrep.json: location /*.png$ is reserved"),
        ("/a.jpg", "tdmrep.json: location / is reserved, policy https://a.example/policy.json"),
    ],
)
def test_the_first_location_that_matches_decides(path: str, line: str | None) -> None:
    assert reserved(RULES, path) == line


@pytest.mark.parametrize(
    "text",
    ["", "<html>", "[" * 100_000, "3", "null", '[{"location": 1, "tdm-reservation": 1}]', '[{"location": "/"}]']
    + [json.dumps([{"location": "/", "tdm-reservation": value}]) for value in (0, 2, True, None, [1], "yes")],
)
def test_a_file_that_cannot_be_read_says_nothing(text: str) -> None:
    assert reserved(text, "/a.jpg") is None


def test_one_rule_without_a_list_is_a_rule() -> None:
    assert reserved({"location": "/", "tdm-reservation": 1}, "/a.jpg") is not None
