"""`headrace trace` and `headrace audit`: from a step to pictures, URLs and verdicts, and from a URL to its steps."""

import io
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from typer.testing import CliRunner

from headrace.cli.app import app
from headrace.config import config_to_dict
from headrace.pipeline import Mixture, Source, open_stream
from headrace.pipeline.seen import FILE, StepRecord
from headrace.shards.dataset import open_dataset
from headrace.shards.write import Sample, finish_dataset, write_shard

BATCH, STEPS = 8, 6


def picture(number: int) -> bytes:
    noise = np.random.default_rng(number).integers(0, 256, (3, 4, 3), np.uint8)
    sink = io.BytesIO()
    image = Image.fromarray(noise).resize((40, 32), Image.Resampling.BICUBIC)
    image.save(sink, "JPEG", exif=secret_exif(), quality=95)
    return sink.getvalue()


def secret_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x013B] = "SECRET ARTIST"
    return exif


@pytest.fixture
def dataset(tmp_path: Path) -> str:
    """Twenty samples: URLs with a signature, captions with markup."""
    samples = []
    for number in range(20):
        url = f"https://me:word@host{number % 2}.example/{number}.jpg?X-Amz-Signature=abc{number}"
        caption = f"<script>alert({number})</script>"
        samples.append(Sample(f"00000{number:06d}", picture(number), "jpg", {"url": url, "caption": caption}))
    write_shard(str(tmp_path / "data"), "00000", samples)
    finish_dataset(str(tmp_path / "data"), recipe_digest="test")
    return str(tmp_path / "data")


@pytest.fixture
def mixture(dataset: str, tmp_path: Path) -> Mixture:
    source = Source(name="web", url=dataset, chunk_samples=4, shuffle_window=8)
    return Mixture(
        seed=1, lanes=2, image_size=16, sources=(source,), index_cache="none", max_bad_fraction=1.0,
        quarantine=str(tmp_path / "bad.jsonl"),
    )  # fmt: skip


def do_run(mixture: Mixture, out: Path) -> list[tuple[int, str, bytes]]:
    """Do a run, and return position, key and pixels of everything it saw."""
    out.mkdir()
    data = {"out": str(out), "global_batch": BATCH, "mixture": config_to_dict(mixture)}
    (out / "run.yaml").write_text(yaml.safe_dump(data))
    record = StepRecord(out / FILE, global_batch=BATCH, step=0)
    rows: list[tuple[int, str, bytes]] = []
    with open_stream(mixture, global_batch=BATCH) as stream:
        for _ in range(STEPS):
            batch = next(stream)
            record.add(batch)
            images = [np.asarray(image).tobytes() for image in batch.images]
            rows += list(zip(batch.position.tolist(), batch.key, images, strict=True))
        (out / "checkpoints" / "00000006").mkdir(parents=True)
        state = {"step": STEPS, "stream": stream.state_dict(), "config": data}
        (out / "checkpoints" / "00000006" / "state.json").write_text(json.dumps(state))
    record.flush(lambda values: values)
    record.close()
    return rows


@pytest.fixture
def run(mixture: Mixture, tmp_path: Path) -> Path:
    do_run(mixture, tmp_path / "run")
    return tmp_path / "run"


def spoil(dataset: str, number: int) -> None:
    row = open_dataset(dataset).index(0).slice(number, 1).to_pylist()[0]
    path = Path(dataset) / "shards" / "00000.tar"
    data = bytearray(path.read_bytes())
    data[row["offset"] + row["size"] // 2] ^= 0xFF
    path.write_bytes(data)


def invoke(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def result(*arguments: object) -> dict[str, Any]:
    done = invoke(*arguments, "--json")
    assert done.exit_code == 0, (done.output, done.exception)
    data: dict[str, Any] = json.loads(done.stdout)
    return data


def fault(*arguments: object) -> str:
    done = invoke(*arguments)
    assert isinstance(done.exception, ValueError), (done.output, done.exception)
    return str(done.exception)


def test_a_step_has_the_samples_that_the_run_saw_and_the_record_proves_it(mixture: Mixture, tmp_path: Path) -> None:
    rows = do_run(mixture, tmp_path / "run")
    for step in (1, 4, STEPS):
        traced = result("trace", tmp_path / "run", "--step", step)
        expected = [(place, key) for place, key, _ in rows if place // BATCH + 1 == step]
        assert [(one["position"], one["key"]) for one in traced["samples"]] == expected
        assert traced["proof"] == "proven"
    one = result("trace", tmp_path / "run", "--position", 13)
    assert [(sample["position"], sample["key"]) for sample in one["samples"]] == [rows[13][:2]]
    assert (one["step"], one["proof"]) == (2, "in part")


def test_the_pictures_are_those_of_the_stream(mixture: Mixture, tmp_path: Path) -> None:
    from headrace.trace.history import open_history
    from headrace.trace.lookup import open_sources
    from headrace.trace.redraw import SIDE_PIXELS, open_redrawer

    rows = do_run(mixture, tmp_path / "run")
    opened = open_sources(open_history(str(tmp_path / "run")))
    with open_redrawer(opened) as redrawer:
        found = list(redrawer.redraw(range(BATCH)))
    for one, (position, key, pixels) in zip(found, rows, strict=False):
        assert (one.position, one.key) == (position, key)
        with Image.open(io.BytesIO(one.picture)) as sheet:
            view = sheet.convert("RGB").crop((sheet.width - SIDE_PIXELS, 0, sheet.width, SIDE_PIXELS))
        seen = Image.fromarray(np.frombuffer(pixels, np.uint8).reshape(16, 16, 3)).resize((SIDE_PIXELS, SIDE_PIXELS))
        assert np.abs(np.asarray(view, np.int16) - np.asarray(seen, np.int16)).mean() < 6
        (window,) = one.windows
        number = int(key[-6:])
        with Image.open(io.BytesIO(picture(number))) as image:
            box = (window.left, window.top, window.left + window.width, window.top + window.height)
            cut = image.crop(box).resize((SIDE_PIXELS, SIDE_PIXELS))
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if window.flipped else cut
        assert np.abs(np.asarray(cut, np.int16) - np.asarray(seen, np.int16)).mean() < 8


def test_the_page_asks_nothing_of_the_network_and_holds_no_secret_and_no_original(run: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    done = invoke("trace", run, "--step", 2, "--out", page, "--pictures", 5)
    assert done.exit_code == 0, done.exception
    text = page.read_text()
    assert text.count("<img") == 5
    assert "3 samples more are listed below" in text
    assert "&lt;script&gt;alert(" in text
    assert "<script>alert(" not in text
    for secret in ("word@", "abc1", "SECRET ARTIST"):
        assert secret not in text + done.output
    assert "me:***@host" in text
    assert not re.search(r'(?:src|href)="(?!data:|#)', text)
    assert "default-src 'none'" in text


def test_a_damaged_sample_is_shown_with_what_replaced_it(mixture: Mixture, dataset: str, tmp_path: Path) -> None:
    spoil(dataset, 7)
    rows = do_run(mixture, tmp_path / "run")
    line = json.loads((tmp_path / "bad.jsonl").read_text().splitlines()[0])
    step = line["position"] // BATCH + 1
    out = tmp_path / "page.html"
    traced = result("trace", tmp_path / "run", "--step", step, "--out", out)
    (one,) = [sample for sample in traced["samples"] if sample["instead_of"]]
    assert (one["position"], one["instead_of"], one["key"]) == (line["position"], "00000000007", line["replaced_by"])
    assert traced["proof"] == "proven"
    assert traced["pictures"] == BATCH
    assert "crc32 is" in one["damage"]
    assert "Damaged samples" in out.read_text()
    audit = result("audit", tmp_path / "run", "--key", "00000000007", "--key", line["replaced_by"])
    assert {row["status"] for row in audit["rows"] if row["key"] == "00000000007"} == {"replaced"}
    seen = [row["position"] for row in audit["rows"] if row["key"] == line["replaced_by"] and row["status"] == "seen"]
    assert seen == [place for place, key, _ in rows if key == line["replaced_by"]]


def test_without_a_quarantine_file_audit_says_what_is_not_known_and_trace_finds_out(
    mixture: Mixture, dataset: str, tmp_path: Path
) -> None:
    spoil(dataset, 7)
    do_run(mixture, tmp_path / "run")
    line = json.loads((tmp_path / "bad.jsonl").read_text().splitlines()[0])
    (tmp_path / "bad.jsonl").unlink()
    step = line["position"] // BATCH + 1
    audit = result("audit", tmp_path / "run", "--key", "00000000007")
    assert {row["status"] for row in audit["rows"]} == {"not known"}
    assert str(step) in audit["not_told"]
    assert "not known: which" in invoke("audit", tmp_path / "run").output
    counted = result("audit", tmp_path / "run", "--read")
    assert (counted["not_told"], counted["sources"]["web"]["num_damaged"]) == ({}, len(audit["rows"]))
    for key, of in (("00000000007", "other_key"), (line["replaced_by"], "key")):
        read = result("audit", tmp_path / "run", "--key", key, "--read")
        (row,) = [row for row in read["rows"] if row["position"] == line["position"]]
        assert (row["status"], row[of]) == ("replaced" if of == "other_key" else "seen", line["replaced_by"])
    traced = result("trace", tmp_path / "run", "--step", step)
    assert traced["proof"] == "proven"
    assert [sample["instead_of"] for sample in traced["samples"] if sample["instead_of"]] == ["00000000007"]


def test_a_mixture_file_is_traced_and_audited_by_its_global_batch(mixture: Mixture, tmp_path: Path) -> None:
    rows = do_run(mixture, tmp_path / "run")
    file = tmp_path / "mixture.yaml"
    file.write_text(yaml.safe_dump(config_to_dict(mixture)))
    traced = result("trace", file, "--global-batch", BATCH, "--step", 3)
    assert [one["key"] for one in traced["samples"]] == [key for _, key, _ in rows[2 * BATCH : 3 * BATCH]]
    assert traced["proof"] == "no record"
    audit = result("audit", file, "--global-batch", BATCH, "--upto", STEPS, "--key", rows[3][1])
    assert [row["position"] for row in audit["rows"]] == [place for place, key, _ in rows if key == rows[3][1]]
    assert "give --global-batch" in fault("trace", file, "--step", 3)
    assert "give --upto" in fault("audit", file, "--global-batch", BATCH)


def test_many_urls_are_answered_by_a_table(run: Path, tmp_path: Path) -> None:
    asked = tmp_path / "urls.txt"
    urls = [f"https://me:word@host{n % 2}.example/{n}.jpg?X-Amz-Signature=abc{n}" for n in range(0, 20, 3)]
    asked.write_text("\n".join([*urls, "", "https://elsewhere.example/a.jpg", urls[0]]) + "\r\n")
    for name, read in (("hits.parquet", pq.read_table), ("hits.csv", pa_csv.read_csv)):
        answer = result("audit", run, "--urls", asked, "--out", tmp_path / name)
        table = read(str(tmp_path / name))
        assert answer["asked"] == len(urls) + 1
        assert answer["not_found"] == ["https://elsewhere.example/a.jpg"]
        assert table.num_rows == sum(answer["rows_by_status"].values()) >= len(urls)
        assert "word" not in "".join(table["url"].to_pylist())
        assert "rows" not in answer
    assert ".parquet or .csv" in fault("audit", run, "--urls", asked, "--out", tmp_path / "hits.txt")
    asked.write_text("\n")
    assert "no line in it" in fault("audit", run, "--urls", asked)
    asked.write_bytes(b"\xff\xd8")
    assert f"--urls {asked}: not a text in UTF-8" in fault("audit", run, "--urls", asked)


def test_counts_are_those_of_the_run(mixture: Mixture, tmp_path: Path) -> None:
    rows = do_run(mixture, tmp_path / "run")
    audit = result("audit", tmp_path / "run", "--out", tmp_path / "seen.parquet", "--top", 1)
    table = pq.read_table(tmp_path / "seen.parquet")
    assert not any(secret in url for url in table["url"].to_pylist() for secret in ("word", "abc"))
    assert all(url.endswith(f"/{int(key[-6:])}.jpg?X-Amz-Signature=***") for key, url in _pairs(table, "key", "url"))
    assert dict(zip(table["key"].to_pylist(), table["times"].to_pylist(), strict=True)) == {
        key: sum(one == key for _, one, _ in rows) for key in {key for _, key, _ in rows}
    }
    assert audit["sources"]["web"]["times"] == BATCH * STEPS
    assert (audit["num_hosts"], len(audit["hosts"])) == (2, 1)
    shown = invoke("audit", tmp_path / "run", "--upto", 2).output
    assert "2 steps of 8 samples: 16" in shown
    assert "host0.example" in shown
    assert result("audit", tmp_path / "run", "--upto", STEPS + 1)["done"] == STEPS
    assert "what is beyond is planned" in invoke("audit", tmp_path / "run", "--upto", STEPS + 1).output


def _pairs(table: Any, one: str, other: str) -> list[tuple[str, str]]:
    return list(zip(table[one].to_pylist(), table[other].to_pylist(), strict=True))


def test_a_picture_whose_bytes_rotted_since_is_left_out_and_counted(
    mixture: Mixture, dataset: str, tmp_path: Path
) -> None:
    rows = do_run(mixture, tmp_path / "run")
    spoil(dataset, int(rows[0][1][-6:]))
    page = tmp_path / "page.html"
    done = invoke("trace", tmp_path / "run", "--step", 1, "--out", page)
    lost = sum(key == rows[0][1] for _, key, _ in rows[:BATCH])
    assert page.read_text().count("<img") == BATCH - lost
    for text in (done.output, page.read_text()):
        assert f"{lost} cannot be made again: what lies there now is not what the run read" in text
    assert "proves that these are the samples" in done.output


def test_a_run_that_moved_with_its_relative_paths_is_found(
    mixture: Mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = do_run(mixture, tmp_path / "run")
    data = yaml.safe_load((tmp_path / "run" / "run.yaml").read_text())
    data["out"], data["mixture"]["sources"][0]["url"] = "run", "data"
    data["mixture"]["quarantine"] = "bad.jsonl"
    (tmp_path / "run" / "run.yaml").write_text(yaml.safe_dump(data))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert [one["key"] for one in result("trace", "../run", "--step", 1)["samples"]] == [r[1] for r in rows[:BATCH]]
    shutil.move(tmp_path / "data", tmp_path / "moved")
    moved = f"sources.0.url={tmp_path / 'moved'}"
    assert result("trace", "../run", moved, "--step", 1)["proof"] == "proven"


@pytest.mark.parametrize(
    ("change", "message"),
    [({"seed": 2}, "state: seed was 1, this stream has 2"), ({"lanes": 4}, "state: lanes was 2, this stream has 4")],
)
def test_a_mixture_that_is_not_the_runs_is_refused(run: Path, change: dict[str, int], message: str) -> None:
    overrides = [f"{name}={value}" for name, value in change.items()]
    assert message in fault("audit", run, *overrides)


def test_what_is_no_run_is_one_line_that_says_so(run: Path, tmp_path: Path) -> None:
    assert "give --step N or --position P" in fault("trace", run)
    assert "give --step N or --position P" in fault("trace", run, "--step", 1, "--position", 1)
    assert "run.yaml is missing" in fault("trace", tmp_path, "--step", 1)
    assert "is not there" in fault("trace", tmp_path / "none", "--step", 1)
    assert "give the folder that it names as `out`" in fault("trace", run / "run.yaml", "--step", 1)
    assert "its positions are over 9223372036854775807" in fault("trace", run, "--step", 10**20)
    assert "its positions are over" in fault("trace", run, "--position", 10**30)
    assert "its positions are over" in fault("audit", run, "--upto", 10**20)
    assert "--url is empty" in fault("audit", run, "--url", "")
    assert "leave --global-batch out" in fault("trace", run, "--global-batch", 8, "--step", 1)
    (run / FILE).unlink()
    shutil.rmtree(run / "checkpoints")
    assert "has done no step yet" in fault("audit", run)
    (run / "run.yaml").write_text("mixture: [")
    assert "is not what a run writes" in fault("audit", run)
    (run / "run.yaml").write_bytes(b"\xff" * 100_000)
    assert "is not what a run writes: UnicodeDecodeError: 'utf-8'" in fault("audit", run)
    assert len(fault("audit", run)) < 1000


def test_skipped_steps_are_told(run: Path) -> None:
    line = {"event": "skipped", "step": 2, "reason": "non_finite"}
    (run / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    traced = result("trace", run, "--step", 2)
    assert traced["skipped"] == "non_finite"
    audit = result("audit", run, "--key", traced["samples"][0]["key"])
    assert {row["step"]: row["status"] for row in audit["rows"]}[2] == "skipped"


def test_tars_of_others_are_traced_to_shard_and_byte(
    dataset: str, mixture: Mixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import dataclasses

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    tars = tmp_path / "tars"
    tars.mkdir()
    shutil.copy(Path(dataset) / "shards" / "00000.tar", tars / "a.tar")
    source = dataclasses.replace(mixture.sources[0], url=str(tars / "*.tar"), index_fast=True)
    foreign = dataclasses.replace(mixture, sources=(source,))
    rows = do_run(foreign, tmp_path / "run")
    page = tmp_path / "page.html"
    traced = result("trace", tmp_path / "run", "--step", 1, "--out", page)
    assert [one["key"] for one in traced["samples"]] == [key for _, key, _ in rows[:BATCH]]
    assert all(one["tar"].endswith("/a.tar") and one["offset"] > 0 and not one["url"] for one in traced["samples"])
    assert "tars of others" in page.read_text()
    assert "not known" in page.read_text()
    assert "made with --fast and does not hold url" in fault("audit", tmp_path / "run", "--url", "https://a.example")
    audit = result("audit", tmp_path / "run", "--key", rows[0][1])
    assert [row["position"] for row in audit["rows"]] == [place for place, key, _ in rows if key == rows[0][1]]


def test_every_view_is_shown_with_its_colours_and_bytes_without_pixels_have_a_picture_too(
    mixture: Mixture, tmp_path: Path
) -> None:
    import dataclasses

    from headrace.pipeline import Augment, View
    from headrace.trace.history import open_history
    from headrace.trace.lookup import open_sources
    from headrace.trace.redraw import SIDE_PIXELS, open_redrawer

    grey = Augment(crop="center", flip=False, grayscale_probability=1.0)
    views = dataclasses.replace(mixture, views=(View(count=2), View(image_size=8, augment=grey)))
    do_run(views, tmp_path / "run")
    opened = open_sources(open_history(str(tmp_path / "run")))
    with open_redrawer(opened) as redrawer:
        (one,) = redrawer.redraw([5])
    assert len(one.windows) == 3
    with Image.open(io.BytesIO(one.picture)) as sheet:
        last = np.asarray(sheet.convert("RGB").crop((sheet.width - SIDE_PIXELS + 4, 4, sheet.width - 4, 156)), np.int16)
    assert np.abs(last[..., 0] - last[..., 1]).mean() < 4
    bytes_only = dataclasses.replace(mixture, decoder="none")
    traced = result("trace", _mixture_file(bytes_only, tmp_path), "--global-batch", 8, "--step", 1)
    assert len(traced["samples"]) == BATCH
    page = tmp_path / "bytes.html"
    assert invoke("trace", tmp_path / "m.yaml", "--global-batch", 8, "--step", 1, "--out", page).exit_code == 0
    assert page.read_text().count("<img") == BATCH


def _mixture_file(mixture: Mixture, folder: Path) -> Path:
    (folder / "m.yaml").write_text(yaml.safe_dump(config_to_dict(mixture)))
    return folder / "m.yaml"


def test_counts_without_hosts_read_no_index(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from headrace.trace.lookup import Opened

    counted = result("audit", run)["sources"]
    monkeypatch.setattr(Opened, "column", lambda *_: pytest.fail("an index is read"))
    audit = result("audit", run, "--top", 0)
    assert audit["sources"] == counted
    assert "hosts" not in audit
