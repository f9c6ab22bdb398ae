"""What the commands of a recipe promise together: what a refused run leaves, and what a dry run foresees."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from headrace.cli.app import main
from headrace.cli.stages import run_stages
from headrace.curation import stages
from headrace.curation.recipe import Recipe, recipe_text

MakeJob = Callable[..., Recipe]
Run = Callable[..., tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `headrace ARGUMENTS`; return exit code and everything printed, the error's line included."""

    def run_main(*arguments: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["headrace", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        code = stopped.value.code
        text = "".join(capsys.readouterr())
        return (1, text + code) if isinstance(code, str) else (code or 0, text)

    return run_main


def test_a_refused_run_leaves_the_recipe_of_the_last_stage_that_finished(
    make_job: MakeJob, run: Run, tmp_path: Path
) -> None:
    recipe = make_job()
    (tmp_path / "r.yaml").write_text(recipe_text(recipe))
    assert run("build", tmp_path / "r.yaml")[0] == 0
    kept = Path(recipe.job, "recipe.yaml").read_bytes()
    assert kept.decode() == recipe_text(recipe)
    for override, told in (("seed=9", "no ledger of this recipe"), ("build.jpeg_quality=70", "--start-over")):
        code, text = run("build", tmp_path / "r.yaml", override)
        assert code == 1
        assert told in text
        assert Path(recipe.job, "recipe.yaml").read_bytes() == kept
    assert run("build", tmp_path / "r.yaml", "build.jpeg_quality=70", "--start-over")[0] == 0
    assert "jpeg_quality: 70" in Path(recipe.job, "recipe.yaml").read_text()


def test_a_part_that_runs_again_after_the_merge_does_nothing_and_the_next_merge_ends(
    make_job: MakeJob, run: Run, tmp_path: Path
) -> None:
    recipe = make_job()
    (tmp_path / "r.yaml").write_text(recipe_text(recipe))
    for options in (("--part", "1/2"), ("--part", "2/2"), ("--merge",)):
        assert run("build", tmp_path / "r.yaml", *options)[0] == 0
    built = {path: path.read_bytes() for path in Path(recipe.job, "dataset").rglob("*") if path.is_file()}
    code, text = run("build", tmp_path / "r.yaml", "--part", "1/2")
    assert (code, "part 1/2 is done already; nothing was done again" in text) == (0, True)
    assert run("build", tmp_path / "r.yaml", "--merge")[0] == 0
    assert {path: path.read_bytes() for path in Path(recipe.job, "dataset").rglob("*") if path.is_file()} == built
    assert not Path(recipe.job, "parts").exists()


def test_a_stage_whose_job_was_taken_over_and_given_back_leaves_no_recipe(
    make_job: MakeJob, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_job()
    (tmp_path / "r.yaml").write_text(recipe_text(recipe))
    monkeypatch.setitem(stages.RUN, "build", lambda *_, **__: Path(recipe.job, "owner.json").unlink())
    code, text = run("build", tmp_path / "r.yaml")
    assert (code, "owner.json: another process took this over" in text) == (1, True)
    assert not Path(recipe.job, "recipe.yaml").exists()


def test_a_dry_run_of_curate_foresees_that_it_needs_start_over(make_job: MakeJob, run: Run, tmp_path: Path) -> None:
    recipe = make_job()
    (tmp_path / "list.csv").write_text("url,caption\nhttp://host.test/1,one\n")
    (tmp_path / "r.yaml").write_text(recipe_text(recipe))
    arguments = (tmp_path / "r.yaml", f"input.urls=[{tmp_path}/list.csv]", "--dry-run")
    assert run("build", tmp_path / "r.yaml")[0] == 0
    code, text = run("curate", *arguments)
    assert (code, "refused" in text, "4 of them are done" in text) == (0, False, True)
    code, text = run("curate", *arguments, "seed=9")
    assert (code, "run `headrace select`" in text) == (0, False)
    assert "build: would be refused" in text
    assert "--start-over" in text
    code, text = run("curate", *arguments, "seed=9", "--start-over")
    assert (code, "refused" in text) == (0, False)
    assert "build: remove the dataset that is there first (4 shards)" in text
    code, text = run("build", tmp_path / "r.yaml", "seed=9", "--dry-run")
    assert "build: cannot start yet" in text
    assert "headrace select" in text


@pytest.mark.parametrize("flags", [(), ("--dry-run",)])
def test_a_file_in_the_place_of_the_job_is_one_line(
    make_job: MakeJob, run: Run, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    (tmp_path / "file").write_text("my own")
    (tmp_path / "r.yaml").write_text(recipe_text(make_job()))
    code, text = run("select", tmp_path / "r.yaml", f"job={tmp_path}/file", *flags)
    assert (code, text) == (1, f"headrace: job: {tmp_path}/file is a file, not a folder; name another job folder")


@pytest.mark.parametrize("kind", ["changed list", "no set", "empty set", "folder"])
def test_a_dry_run_refuses_what_the_run_would_refuse(make_job: MakeJob, run: Run, tmp_path: Path, kind: str) -> None:
    (tmp_path / "list.txt").write_text("http://127.0.0.1:1/\n")
    (tmp_path / "r.yaml").write_text(recipe_text(make_job()))
    (tmp_path / "empty").mkdir()
    arguments = ["fetch", tmp_path / "r.yaml", f"input.urls=[{tmp_path}/list.txt]", f"job={tmp_path}/other"]
    arguments += ["fetch.retries=0", "engine.executor=inline"]
    if kind == "changed list":
        assert run(*arguments)[0] == 0
        (tmp_path / "list.txt").write_text("http://127.0.0.1:2/\n")
    elif kind == "folder":
        arguments[3] = f"job={tmp_path}/list.txt/job"
    else:
        arguments[0] = "select"
        url = tmp_path / ("empty" if kind == "empty set" else "none")
        arguments.append(f"select=[{{step: decontaminate, against: [{{name: coco, url: {url}}}]}}]")
    texts = [run(*arguments, *flags)[1].splitlines()[-1] for flags in (["--dry-run"], [])]
    assert texts[0] == texts[1]
    expected = {"changed list": "changed: the files", "no set": "'coco': no such", "empty set": "'coco': "}
    assert expected.get(kind, "is a file, not a folder") in texts[0]


def test_a_command_ends_with_numbers_and_the_next_command_to_type(make_job: MakeJob, run: Run, tmp_path: Path) -> None:
    recipe = make_job()
    path = tmp_path / "my recipe.yaml"
    path.write_text(recipe_text(recipe))
    code, text = run("build", path, "build.jpeg_quality=90")
    assert code == 0
    assert "build: 17 samples in 4 shards" in text
    assert f"next: headrace report '{path}' build.jpeg_quality=90" in text.splitlines()
    assert "next:" not in run("build", path, "build.jpeg_quality=90", "-q")[1]


def test_json_is_one_object_and_nothing_else(make_job: MakeJob, run: Run, tmp_path: Path) -> None:
    recipe = make_job()
    (tmp_path / "r.yaml").write_text(recipe_text(recipe))
    code, text = run("build", tmp_path / "r.yaml", "--json", "-q")
    (line,) = text.splitlines()
    found = json.loads(line)
    assert (code, found["command"], found["num_samples"], found["dataset"]) == (0, "build", 17, "dataset")
    (line,) = run("report", recipe.job, "--json", "-q")[1].splitlines()
    assert json.loads(line)["html"].endswith("report.html")


def test_json_of_several_stages_is_one_object(
    make_job: MakeJob, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(recipe_text(make_job()))
    run_stages(("build", "report"), str(path), None, dry_run=False, take_over=False, json=True)
    found = json.loads(capsys.readouterr().out)
    assert [stage["command"] for stage in found["stages"]] == ["build", "report"]
    assert (found["command"], found["stages"][0]["num_samples"]) == ("curate", 17)


def test_a_report_speaks_of_the_dataset_or_ledger_that_was_asked_for(
    make_job: MakeJob, run: Run, tmp_path: Path
) -> None:
    """And lies in that dataset's folder: the published one's report stays."""
    recipe = make_job()
    (tmp_path / "r.yaml").write_text(recipe_text(recipe))
    assert run("build", tmp_path / "r.yaml")[0] == 0
    assert run("annotate", tmp_path / "r.yaml")[0] == 0
    assert run("select", tmp_path / "r.yaml", "seed=9")[0] == 0
    assert run("build", tmp_path / "r.yaml", "seed=9", "build.dataset=other")[0] == 0
    other = json.loads(Path(recipe.job, "datasets", "other", "dataset.json").read_text())["ledger"]
    asked = (
        (recipe.job, "--dataset", "other"),
        (tmp_path / "r.yaml", "--dataset", "other"),
        (recipe.job, "--ledger", other),
    )
    for arguments in asked:
        code, text = run("report", *arguments, "-q")
        assert (code, "(datasets/other)" in text) == (0, True), arguments
        assert f"{recipe.job}/report/other/report.html" in text
    assert not Path(recipe.job, "report", "report.html").exists()


def test_a_plan_is_json_too(make_job: MakeJob, run: Run, tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(recipe_text(make_job()))
    code, text = run("build", tmp_path / "r.yaml", "--dry-run", "--json")
    assert (code, json.loads(text)["command"]) == (0, "build")
    assert any("cut metadata" in line for line in json.loads(text)["plan"])
