"""What exists is letters, what does not is a glob."""

from pathlib import Path

import pytest

from headrace.globs import matching


@pytest.mark.parametrize("folder", ["my [data] (v1)", "wh?t", "st*r", "[!x]", "back{brace}"])
def test_a_path_that_exists_is_never_read_as_a_glob(tmp_path: Path, folder: str) -> None:
    root = tmp_path / folder / "in [side]"
    root.mkdir(parents=True)
    for name in ("a.txt", "b[1].txt", "c?.txt"):
        (root / name).write_text("")
    (tmp_path / "data").mkdir()  # what the first name would match as a glob
    for name in ("a.txt", "b[1].txt", "c?.txt"):
        assert matching(f"{root}/{name}") == [f"{root}/{name}"]
    assert matching(f"{root}/?.txt") == [f"{root}/a.txt"]
    assert matching(f"{tmp_path}/{folder}/*/[ab]*") == [f"{root}/a.txt", f"{root}/b[1].txt"]
    assert matching(f"{root}/absent.txt") == matching(f"{root}/[xy].txt") == []
