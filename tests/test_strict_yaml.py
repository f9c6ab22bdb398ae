"""Promises of the strict YAML reader."""

from pathlib import Path

import pytest

from headrace.strict_yaml import parse_yaml, read_mapping


def test_scalars_follow_yaml_1_2() -> None:
    assert parse_yaml("[off, no, 1e-3, 010, 1.5, true, null, 12:30]") == [
        "off",
        "no",
        1e-3,
        10,
        1.5,
        True,
        None,
        "12:30",
    ]


@pytest.mark.parametrize(
    "text", ["[" * 20_000, "\n".join(" " * depth + "a:" for depth in range(900))], ids=["list", "mapping"]
)
def test_what_is_nested_too_deep_is_a_mistake_of_the_user(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"run\.yaml: nested too deep"):
        read_mapping(path)


@pytest.mark.parametrize("tag", ["set", "binary", "timestamp", "omap", "python/object:os.system"])
def test_a_tag_that_is_no_plain_data_is_refused(tag: str) -> None:
    with pytest.raises(ValueError, match=r"line 1.*could not determine a constructor"):
        parse_yaml(f"name: !!{tag} {{a, b}}\n")
