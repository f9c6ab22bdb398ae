"""A user's mistake ends as one line and exit code 1, whatever is in it."""

import importlib.util
import inspect
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.registry import known_implementations

from headrace import __version__
from headrace.cli import app
from headrace.curation.annotate.annotators import known_annotators
from headrace.curation.select.steps import known_steps

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
    assert "\x1b" not in line
    assert "\x07" not in line
    assert "no column 'url'; its columns: " in line
    assert line.isprintable()


def test_a_file_system_that_is_not_installed_ends_as_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["headrace", "verify", "missing-system://bucket/dataset"])
    monkeypatch.setitem(
        known_implementations, "missing-system", {"class": "no_such_package.System", "err": "Install no_such_package"}
    )
    with pytest.raises(SystemExit) as stopped:
        app.main()
    assert stopped.value.code == "headrace: Install no_such_package"


def test_a_missing_extra_of_a_url_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["headrace", "verify", "missing-system://bucket/dataset"])
    monkeypatch.setitem(known_implementations, "missing-system", {"class": "s3fs.no_such_module.System", "err": "?"})
    with pytest.raises(SystemExit) as stopped:
        app.main()
    assert "pip install 'headrace[s3]'" in str(stopped.value.code)


def test_a_missing_package_of_a_step_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = [*known_steps().values(), *known_annotators().values()]
    assert {package for kind in kinds for package in kind.packages} <= set(app.EXTRAS)
    pq.write_table(pa.table({"url": ["http://host.test/1.jpg"], "vector": [[1.0]]}), tmp_path / "list.parquet")
    steps = "select: [{step: embedding_duplicates, embedding: vector, threshold: 0.9, order: [url]}]\n"
    recipe = RECIPE.replace("list.csv]", "list.parquet], columns: [vector]").format(folder=tmp_path) + steps
    (tmp_path / "recipe.yaml").write_text(recipe)
    found = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "faiss" else found(name))
    monkeypatch.setattr("sys.argv", ["headrace", "select", str(tmp_path / "recipe.yaml")])
    with pytest.raises(SystemExit) as stopped:
        app.main()
    assert stopped.value.code == "headrace: this needs the package faiss: pip install 'headrace[faiss]'"


def test_the_version_is_told(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.argv", ["headrace", "--version"])
    with pytest.raises(SystemExit) as stopped:
        app.main()
    version, decoder = capsys.readouterr().out.splitlines()
    assert (stopped.value.code, version) == (0, f"headrace {__version__}")
    assert decoder.startswith("decodes by ")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["stream"], "headrace: Missing argument 'MIXTURE.yaml'; see headrace stream --help"),
        (
            ["fetch", "--dryrun", "r.yaml"],
            "headrace: No such option: --dryrun (Possible options: --dry-run); see headrace",
        ),
        (
            ["fetch", "--start-over", "r.yaml"],
            "headrace: headrace fetch has no option --start-over; these have: build, curate; see headrace fetch",
        ),
        (["curat"], "headrace: No such command 'curat'"),
        (["stream", "m.yaml", "--batches", "0"], "headrace: Invalid value for '--batches': "),
    ],
)
def test_a_command_line_that_cannot_be_read_is_one_line(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], line: str
) -> None:
    monkeypatch.setattr("sys.argv", ["headrace", *arguments])
    with pytest.raises(SystemExit) as stopped:
        app.main()
    assert str(stopped.value.code).startswith(line)
    assert str(stopped.value.code).isprintable()


def test_a_value_that_is_none_of_an_options_names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["headrace", "forget", "job", "--copies", "sme"])
    with pytest.raises(SystemExit) as stopped:
        app.main()
    assert str(stopped.value.code).endswith("'none'; did you mean 'same'? see headrace forget --help")


@pytest.mark.parametrize("words", [["-h"], ["fetch", "-h"]])
def test_a_short_h_shows_the_help(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["headrace", *words])
    with pytest.raises(SystemExit) as ended:
        app.main()
    assert not ended.value.code
    assert "Usage: headrace" in capsys.readouterr().out


def test_without_a_command_the_help_is_shown(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["headrace"])
    with pytest.raises(SystemExit) as stopped:
        app.main()
    assert not stopped.value.code
    assert "curate" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(set(app.COMMANDS) - {"demo", "new"}))
def test_every_command_that_reports_takes_json(name: str) -> None:
    command = next(command for command in app.app.registered_commands if command.name == name)
    assert command.callback is not None
    assert "json" in inspect.signature(command.callback).parameters
