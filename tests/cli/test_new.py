"""Promises of `headrace new`: a file that works, and never over another."""

from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.cli.new import FILES
from headrace.config import load_config
from headrace.curation.recipe import load_recipe
from headrace.pipeline import Mixture
from headrace.train.config import load_run
from headrace.train.evaluate.suite import load_suite

EXAMPLES = Path(__file__).parents[2] / "examples"

Run = Callable[..., tuple[int, str]]


@pytest.mark.parametrize(("what", "kind"), [(what, kind) for what, kinds in FILES.items() for kind in kinds])
def test_each_kind_is_a_file_that_its_command_reads(run: Run, tmp_path: Path, what: str, kind: str) -> None:
    file = tmp_path / "folder" / "mine.yaml"
    code, text = run("new", what, file, "--kind", kind)
    assert code == 0
    assert f"wrote {file}" in text
    if what == "recipe":
        load_recipe(file)
    elif what == "mixture":
        load_config(Mixture, file)
    elif what == "suite":
        load_suite(file)
    else:
        load_run(file)
    assert "examples/" not in "".join(line for line in file.read_text().splitlines() if f"headrace {what}" in line)


def test_every_example_is_of_a_kind() -> None:
    known = {name for kinds in FILES.values() for name in kinds.values()}
    assert {path.name for path in EXAMPLES.glob("*.yaml")} == known


def test_an_existing_file_stays_as_it_is(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("precious")
    code, text = run("new", "recipe", file)
    assert code == 1
    assert "exists already" in text
    assert file.read_text() == "precious"


def test_an_unknown_kind_names_the_known_ones(run: Run, tmp_path: Path) -> None:
    code, text = run("new", "run", tmp_path / "mine.yaml", "--kind", "mocha")
    assert code == 1
    assert "--kind: unknown 'mocha' of a run; did you mean 'moco'? known: aim, " in text
    assert not (tmp_path / "mine.yaml").exists()


def test_a_file_in_the_place_of_a_folder_is_told_so(run: Run, tmp_path: Path) -> None:
    (tmp_path / "there").touch()
    code, text = run("new", "recipe", tmp_path / "there" / "mine.yaml")
    assert code == 1
    assert "there'; a file is in the way of a folder" in text
