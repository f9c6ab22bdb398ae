"""A user's mistake ends as one line and exit code 1, whatever is in it."""

from pathlib import Path

import pytest

from headrace.cli import app

RECIPE = "job: {folder}/job\nunsafe_images: off\ninput: {{urls: [{folder}/list.csv]}}\n"


def test_control_characters_of_a_list_do_not_reach_the_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "list.csv").write_bytes(b"\x1b[31mlink\x07,caption\nhttp://host.test/1.jpg,a\n")
    (tmp_path / "recipe.yaml").write_text(RECIPE.format(folder=tmp_path))
    monkeypatch.setattr("sys.argv", ["headrace", "fetch", str(tmp_path / "recipe.yaml")])
    with pytest.raises(SystemExit) as stopped:
        app.main()
    line = str(stopped.value.code)
    assert "no column 'url'; its columns:  [31mlink , caption" in line
    assert line.isprintable()
