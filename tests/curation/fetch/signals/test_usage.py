"""Preferences on training: the dictionary of RFC 9651 as AIPREF reads it, and Content-Signal."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.curation.fetch.signals.usage import parse_dictionary, signal_forbids_training, usage_forbids_training


@pytest.mark.parametrize(
    ("values", "stated"),
    [
        (["train-ai=n"], True),
        (["train-ai=y"], False),
        (["search=y, train-ai=n"], True),
        (["search=y", "train-ai=n"], True),
        (["train-ai=y, train-ai=n"], True),
        (["train-ai=n, train-ai"], None),  # the last one counts, and it is a boolean
        (["train-ai=n;why=(1)"], None),  # a parameter holds no list
        (['train-ai=n;a="x, y";b=?0;c=:YQ==:;d=1.5;e=@17, search=n'], True),
        (['x=("a" b;c 1), train-ai=n'], True),
        (["train-ai=n,"], None),
        (["train-ai=n search=y"], None),
        (["Train-AI=n"], None),
        (["train-ai=N"], None),
        (["train-ai=no"], None),
        (['train-ai="n"'], None),
        (["train-ai=n, B=1"], None),
        (["  train-ai=n  "], True),
        (["train-ai=n\t,\tsearch=y"], True),
        ([""], None),
        ([], None),
    ],
)
def test_content_usage(values: list[str], stated: bool | None) -> None:
    assert usage_forbids_training(values) is stated


@pytest.mark.parametrize(
    ("values", "stated"),
    [
        (["search=yes, ai-train=no"], True),
        (["ai-train=yes"], False),
        (["ai-train=yes", "AI-Train = No"], True),
        (["ai-input=no, search=no"], None),
        (["not-ai-train=no"], None),
    ],
)
def test_content_signal(values: list[str], stated: bool | None) -> None:
    assert signal_forbids_training(values) is stated


@given(st.text(alphabet='atn-ri=;,"()\\ ?:y*1.@%', max_size=40))
def test_any_text_is_a_dictionary_or_refused(text: str) -> None:
    try:
        members = parse_dictionary(text)
    except ValueError:
        return
    assert all(key == key.lower() for key in members)
