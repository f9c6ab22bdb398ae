"""Promises of captions that are merged: ledger, dataset, `why` and take-downs hold all, each with its row."""

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from headrace.cli.app import main
from headrace.cli.why import why_command
from headrace.config import config_to_dict
from headrace.curation.annotate.config import annotate_config
from headrace.curation.build.config import BuildConfig
from headrace.curation.build.inputs import load_raw_shard
from headrace.curation.fetch.config import InputConfig
from headrace.curation.forget import tables
from headrace.curation.forget.find import Texts
from headrace.curation.forget.stage import ForgetOptions, ForgetSummary, run_forget
from headrace.curation.job import Job, own_job
from headrace.curation.ledger import latest_decision
from headrace.curation.raw.schema import uid_of
from headrace.curation.recipe import Recipe, recipe_text
from headrace.curation.report.config import ReportConfig
from headrace.curation.report.galleries import Shown
from headrace.curation.report.pictures import Pictures
from headrace.curation.report.sections.pictures import picture
from headrace.curation.select.steps.exact_duplicates import ExactDuplicates
from headrace.curation.select.steps.near_duplicates import NearDuplicates
from headrace.curation.stages import annotate, build, report, select
from headrace.curation.why import HeldCaption, explain
from headrace.pipeline import Mixture, Source, open_stream
from headrace.shards.dataset import open_dataset
from headrace.shards.units import EngineConfig
from headrace.shards.verify import verify_dataset
from tests.curation.listed_pictures import draw, write_listed

# Two groups and a picture alone. Of the first one two rows have the same bytes; the best of the second has no caption.
ROWS = (
    ("http://a.test/1.png", "a red house", 1, 256),
    ("http://a.test/2.png", "zwei baeume", 1, 256),
    ("http://a.test/3.png", "A  RED House", 1, 192),
    ("http://a.test/4.png", "une maison", 1, 128),
    ("http://b.test/1.png", None, 2, 256),
    ("http://b.test/2.png", "ship", 2, 192),
    ("http://b.test/3.png", "lighthouse", 2, 128),
    ("http://c.test/1.png", "alone", 3, 256),
)
DRIVER = Path(__file__).parent / "kill_each_write.py"
BETTER = "a villa of brick"
HOUSE, SHIP, ALONE = "http://a.test/1.png", "http://b.test/1.png", "http://c.test/1.png"


def _write_raw(job: Job) -> None:
    columns = {
        "url": [row[0] for row in ROWS],
        "caption": pa.array([row[1] for row in ROWS], pa.string()),
        "captions": pa.array([["carried"]] * len(ROWS), pa.list_(pa.string())),
        "better": pa.array([BETTER, *[None] * (len(ROWS) - 1)], pa.string()),
    }
    write_listed(job, [draw(seed, side=side) for _, _, seed, side in ROWS], columns)


def _selected(job: Job, *, most: int = 16) -> Recipe:
    """Annotate the rows of a job and select; `most` is `max_captions`."""
    recipe = Recipe(
        job=job.url,
        unsafe_images="off",
        input=InputConfig(urls=("list.csv",)),
        annotate=annotate_config(faces=None),
        select=(
            ExactDuplicates(captions="merge", max_captions=most),
            NearDuplicates(captions="merge", max_captions=most),
        ),
        build=BuildConfig(blur_faces=False),
        engine=EngineConfig(executor="inline"),
    )
    annotate(recipe)
    select(recipe)
    return recipe


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A finished job; tests that change it make a copy."""
    job = Job(str(tmp_path_factory.mktemp("merged") / "job"))
    _write_raw(job)
    recipe = _selected(job)
    build(recipe)
    build(_choosing(recipe))
    Path(job.url, "job.json").write_text('{"schema": 1}\n')
    return recipe


def _choosing(recipe: Recipe) -> Recipe:
    """Return the recipe of a dataset whose captions may come from another column."""
    return replace(recipe, build=replace(recipe.build, dataset="chosen", caption=("better", "caption")))


def _copied(recipe: Recipe, folder: Path) -> Recipe:
    shutil.copytree(recipe.job, folder / "job")
    return replace(recipe, job=str(folder / "job"))


def _index(job: Job, name: str = "") -> dict[str, dict[str, Any]]:
    dataset = open_dataset(job.dataset_named(name))
    assert list(verify_dataset(dataset.url)) == []
    return {row["url"]: row for row in dataset.index(0).to_pylist()}


def _members(job: Job) -> dict[str, str]:
    with tarfile.open(open_dataset(job.dataset).tar_url(0)) as tar:
        texts = [member for member in tar if member.name.endswith((".txt", ".json"))]
        return {member.name: (tar.extractfile(member) or io.BytesIO()).read().decode() for member in texts}


def _shards(job: Job, name: str = "") -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(job.dataset_named(name), "shards").iterdir()}


def _captions(job: Job, name: str = "") -> dict[str, list[str] | None]:
    return {url: row["captions"] for url, row in _index(job, name).items()}


def _uids(*numbers: int) -> list[str]:
    return [uid_of(ROWS[number][1], ROWS[number][0]) for number in numbers]


def _forget(recipe: Recipe, *urls: str, dataset: str | None = None) -> ForgetSummary:
    with own_job(Job(recipe.job), forgetting=True) as job:
        return run_forget(job, Texts(set(urls)), ForgetOptions(copies="none", dataset=dataset))


def _holders(job: Job, *texts: str) -> list[str]:
    """Return the files of a job that hold one of the texts, in the clear or in a column."""
    found = []
    for path in sorted(path for path in Path(job.url).rglob("*") if path.is_file()):
        plain = path.suffix != ".parquet"
        data = path.read_bytes() if plain else repr(pq.read_table(path).to_pylist()).encode()
        found += [str(path)] if any(text.encode() in data for text in texts) else []
    return found


def test_a_sample_holds_all_captions_of_its_group_and_readers_of_one_the_first(
    built: Recipe, capsys: pytest.CaptureFixture[str]
) -> None:
    job, index = Job(built.job), _index(Job(built.job))
    house, ship, alone = index[HOUSE], index[SHIP], index[ALONE]
    assert (house["caption"], house["captions"]) == ("a red house", ["a red house", "zwei baeume", "une maison"])
    assert (house["caption_of"], house["captions_of"]) == (None, _uids(0, 1, 3))
    assert (ship["caption"], ship["captions"], ship["caption_chars"]) == ("ship", ["ship", "lighthouse"], 4)
    assert (ship["caption_of"], ship["captions_of"]) == (_uids(5)[0], _uids(5, 6))
    assert (alone["captions"], alone["captions_of"]) == (["alone"], _uids(7))
    members = _members(job)
    assert members[f"{house['key']}.txt"] == "a red house"
    assert json.loads(members[f"{house['key']}.json"])["captions"] == house["captions"]
    summary = latest_decision(job).summary
    told = {step.name: step.details.get("captions_merged") for step in summary.steps if step.settings}
    assert (summary.schema, told) == (3, {"exact_duplicates": 1, "near_duplicates": 3})

    (story,) = explain(job, HOUSE)
    assert story.captions == [HeldCaption(*one) for one in zip(house["captions"], house["captions_of"], strict=True)]
    why_command(job.url, HOUSE, dataset="", ledger="", nearest=False, json=False)
    assert f"une maison (of row {_uids(3)[0]})" in " ".join(capsys.readouterr().out.split())
    fields = json.loads(Path(job.dataset, "croissant.json").read_text())["recordSet"][0]["field"]
    assert {field["name"]: field.get("isArray") for field in fields}["captions"] is True


def _trained(dataset: str, out: Path, steps: int = 6) -> dict[str, list[int]]:
    """Do steps of one sample as a trainer does and leave a run folder; return the steps that each key was in."""
    source = Source(name="web", url=dataset, chunk_samples=1, shuffle_window=2)
    mixture = Mixture(
        seed=5, lanes=1, image_size=16, sources=(source,), index_cache="none", decode_threads=1, io_threads=1
    )
    data = {"out": str(out), "global_batch": 1, "mixture": config_to_dict(mixture)}
    folder = out / "checkpoints" / f"{steps:08d}"
    folder.mkdir(parents=True)
    (out / "run.yaml").write_text(yaml.safe_dump(data))
    seen: dict[str, list[int]] = {}
    with open_stream(mixture, global_batch=1) as stream:
        for step in range(1, steps + 1):
            seen.setdefault(next(stream).key[0], []).append(step)
        state = {"step": steps, "stream": stream.state_dict(), "config": data}
    (folder / "state.json").write_text(json.dumps(state))
    (out / "metrics.jsonl").write_text(json.dumps({"event": "train", "step": steps}) + "\n")
    return seen


def test_audit_finds_the_samples_that_held_the_caption_of_a_dropped_row_by_its_url(
    built: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = _copied(built, tmp_path)
    job, dropped = Job(recipe.job), ROWS[3][0]
    key, (uid,) = _index(job)[HOUSE]["key"], _uids(3)
    seen = _trained(job.dataset, tmp_path / "before")

    def audited(run: str, *asked: str) -> list[tuple[str, str, int | None]]:
        monkeypatch.setattr(sys, "argv", ["headrace", "audit", str(tmp_path / run), *asked, "--json", "-q"])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert not stopped.value.code, stopped.value.code
        rows = json.loads(capsys.readouterr().out)["rows"]
        return [(row["asked"], row["key"], row["step"]) for row in rows]

    wanted = [(dropped, key, step) for step in seen[key]]
    assert audited("before", "--url", dropped) == wanted
    assert audited("before", "--url", HOUSE) == [(HOUSE, key, step) for step in seen[key]]
    _forget(recipe, dropped)
    _forget(recipe, ROWS[1][0])  # a later take-down does not hide the first
    assert audited("before", "--url", dropped) == wanted
    assert audited("before", "--uid", uid) == [(uid, key, step) for step in seen[key]]
    _trained(job.dataset, tmp_path / "after")
    assert audited("after", "--url", dropped) == []

    record = Path(job.dataset, "forgotten", "00000.json")
    told = json.loads(record.read_text())
    digests = [hashlib.sha256(text.encode()).hexdigest() for text in (dropped, uid)]
    assert told.pop("captions") == [["00000", key, *digests]]
    assert _holders(job, dropped, uid) == []
    record.write_text(json.dumps(told))  # as an older headrace wrote it
    assert audited("before", "--url", dropped) == []
    assert audited("before", "--url", HOUSE) == [(HOUSE, key, step) for step in seen[key]]


def test_the_report_shows_and_counts_them_all(built: Recipe, tmp_path: Path) -> None:
    recipe = _copied(built, tmp_path)
    report(replace(recipe, report=ReportConfig(pictures="all")))
    told = json.loads(Path(recipe.job, "report", "report.json").read_text())
    assert (told["dataset"]["captions"], told["dataset"]["several_captions"]) == (6, 2)
    pictures = Pictures(None, open_dataset(Job(recipe.job).dataset), 64, all_shown=True)
    shown = pictures.of_sample("00000", _index(Job(recipe.job))[HOUSE]["key"])
    assert picture(Shown(row={"uid": ""}, thumbnail=shown, note="kept")).lines[:3] == (
        "zwei baeume",
        "une maison",
        "kept",
    )


def test_a_carried_column_of_that_name_is_refused(built: Recipe) -> None:
    recipe = replace(built, build=replace(built.build, dataset="no", columns=("captions",)))
    with pytest.raises(ValueError, match="a column captions is carried, and captions are merged into one of that name"):
        build(recipe)


def test_captions_behind_the_most_are_cut_and_counted(built: Recipe, tmp_path: Path) -> None:
    recipe = _selected(Job(_copied(built, tmp_path).job), most=2)
    build(replace(recipe, build=replace(recipe.build, dataset="two")))
    held = _captions(Job(recipe.job), "two")
    assert held == {HOUSE: ["a red house", "zwei baeume"], SHIP: ["ship", "lighthouse"], ALONE: ["alone"]}
    steps = latest_decision(Job(recipe.job)).summary.steps
    assert [step.details["captions_cut"] for step in steps if step.settings] == [0, 1]


def test_a_chosen_caption_comes_first_and_those_of_the_list_behind_it(built: Recipe) -> None:
    house = _index(Job(built.job), "chosen")[HOUSE]
    assert (house["caption"], house["caption_listed"]) == (BETTER, "a red house")
    assert house["captions"] == [BETTER, "a red house", "zwei baeume", "une maison"]
    assert house["captions_of"] == _uids(0, 0, 1, 3)


@pytest.mark.parametrize(
    ("gone", "left"),
    [
        ((1,), {HOUSE: ["a red house", "une maison"]}),
        ((1, 3), {HOUSE: ["a red house"]}),
        ((5,), {SHIP: ["lighthouse"]}),
        ((5, 6), {SHIP: None}),
        ((0, 7), {SHIP: ["ship", "lighthouse"]}),
    ],
)
def test_a_take_down_leaves_no_word_of_a_row_whose_caption_another_took(
    built: Recipe, tmp_path: Path, gone: tuple[int, ...], left: dict[str, list[str] | None]
) -> None:
    recipe = _copied(built, tmp_path)
    job = Job(recipe.job)
    words = [text for number in gone if (text := ROWS[number][1])]
    assert len(_holders(job, *words)) >= 4
    _forget(recipe, *(ROWS[number][0] for number in gone))
    assert _holders(job, *words, *(ROWS[number][0] for number in gone), *_uids(*gone)) == []
    assert {url: _captions(job)[url] for url in left} == left
    for one in (recipe, _choosing(recipe)):  # as build would have written them without the rows
        build(replace(one, build=replace(one.build, dataset=f"{one.build.dataset}again")))
        assert _shards(job, f"{one.build.dataset}again") == _shards(job, one.build.dataset)


def test_another_dataset_that_still_holds_a_caption_is_named(built: Recipe, tmp_path: Path) -> None:
    recipe = _copied(built, tmp_path)
    assert "datasets/chosen" in _forget(recipe, ROWS[1][0], dataset="").held
    assert _captions(Job(recipe.job))[HOUSE] == ["a red house", "une maison"]


def test_a_take_down_killed_among_raw_shards_still_gives_a_sample_its_own_caption_back(
    built: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(built.build, dataset="longest")
    recipe = _copied(replace(built, select=(NearDuplicates(captions="longest"),), build=config), tmp_path)
    select(recipe)
    build(recipe)
    job = Job(recipe.job)
    (url,) = [url for url, row in _index(job, "longest").items() if row["caption_of"] == _uids(2)[0]]

    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tables, "replace_commit", killed)  # the tar is new, its record is not
        with pytest.raises(KeyboardInterrupt):
            _forget(recipe, ROWS[2][0])
    load_raw_shard.cache_clear()  # as in a process of its own
    assert _forget(recipe).finished == ("00000",)
    row = _index(job, "longest")[url]
    assert (row["caption"], row["caption_of"]) == ({row[0]: row[1] for row in ROWS}[url], None)


@pytest.mark.full
@pytest.mark.parametrize(("stage", "least", "stride"), [("build", 5, 7), ("captions", 5, 9)])
def test_a_build_and_a_take_down_killed_at_any_write_end_with_the_same_bytes(
    built: Recipe, tmp_path: Path, stage: str, least: int, stride: int
) -> None:
    recipe = _copied(built, tmp_path)
    if stage == "build":
        shutil.rmtree(Job(recipe.job).dataset)
    Path(f"{recipe.job}.yaml").write_text(recipe_text(recipe))
    Path(f"{recipe.job}.urls").write_text(f"{ROWS[3][0]} {ROWS[5][0]}")
    command = [sys.executable, str(DRIVER), stage, recipe.job, str(stride), "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert int(done.stdout.split()[-1]) >= least
