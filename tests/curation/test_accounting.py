"""The promise of all of curation: what goes in is accounted for, by name, at every step.

Lists in every format with odd content, served by a real server that answers well, badly and not at all. A row of the
list is a row of the raw tables, an image is a row of every annotator's table, a row of the ledger is kept or dropped by
one step, and what is kept is a sample of the dataset or a named failure of build.
"""

import csv
import http.server
import io
import itertools
import json
import shutil
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from headrace.config import build_config
from headrace.curation import stages
from headrace.curation.job import Job
from headrace.curation.ledger import latest_decision
from headrace.curation.recipe import Recipe
from headrace.shards.dataset import open_dataset
from headrace.shards.verify import verify_dataset

NUM_PICTURES = 8
FOLDERS = itertools.count()

# What a row's URL leads to; the server answers by the first name in the path.
KINDS = ("ok", "ok", "ok", "gone", "page", "cut", "empty", "small", "refused", "nowhere", "nothing")

CAPTIONS = st.none() | st.sampled_from(
    [
        "a red chair",
        'the film "harbour"',
        '36" long',
        "comma, here",
        "tab\there",
        "caf\u00e9 \u2028 x",
        "NaN",
        "  ",
        "'",
    ]
)
ROWS = st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, NUM_PICTURES - 1), CAPTIONS), min_size=1, max_size=24)


def _picture(number: int, side: int) -> bytes:
    noise = np.random.default_rng(number).integers(0, 256, (5, 5, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).save(sink, "JPEG", quality=90)
    return sink.getvalue()


class _Answers(http.server.BaseHTTPRequestHandler):
    """`/KIND/NUMBER.jpg`."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        kind, _, number = self.path.strip("/").removesuffix(".jpg").partition("/")
        if not number.isdecimal():  # robots.txt, .well-known/tdmrep.json
            self.send_error(404)
            return
        picture = _picture(int(number), 20 if kind == "small" else 80)
        body = {"page": b"<html>no picture</html>", "cut": picture[:-300], "empty": b"", "gone": b"gone"}
        data = body.get(kind, picture)
        self.send_response(404 if kind == "gone" else 200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture(scope="module")
def host() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Answers)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def _url(kind: str, number: int, host: str) -> str | None:
    if kind == "nothing":
        return None
    if kind == "nowhere":
        return f"htp:/{number}"
    return f"http://{'10.0.0.1' if kind == 'refused' else host}/{kind}/{number}.jpg"


Write = Callable[[Path, Sequence[tuple[str | None, str | None]]], None]


def _csv(path: Path, rows: Sequence[tuple[str | None, str | None]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("url", "caption"), *((url or "", text or "") for url, text in rows)])


def _tsv(path: Path, rows: Sequence[tuple[str | None, str | None]]) -> None:
    lines = ["url\tcaption"]
    lines += [f"{url or ''}\t{(text or '').replace(chr(9), ' ').replace(chr(0x2028), ' ')}" for url, text in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _jsonl(path: Path, rows: Sequence[tuple[str | None, str | None]]) -> None:
    path.write_text("".join(json.dumps({"url": url, "caption": text}) + "\n" for url, text in rows), encoding="utf-8")


def _json(path: Path, rows: Sequence[tuple[str | None, str | None]]) -> None:
    path.write_text(json.dumps([{"url": url, "caption": text} for url, text in rows]), encoding="utf-8")


def _parquet(path: Path, rows: Sequence[tuple[str | None, str | None]]) -> None:
    columns = {"url": pa.array([url for url, _ in rows], pa.string())}
    columns["caption"] = pa.array([text for _, text in rows], pa.string()).dictionary_encode()
    pq.write_table(pa.table(columns), path)


FORMATS: dict[str, Write] = {"csv": _csv, "tsv": _tsv, "jsonl": _jsonl, "json": _json, "parquet": _parquet}


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=ROWS, kind=st.sampled_from(sorted(FORMATS)), shard=st.integers(1, 9), out=st.integers(1, 5))
def test_what_goes_in_is_accounted_for_at_every_step(
    tmp_path: Path, host: str, rows: list[tuple[str, int, str | None]], kind: str, shard: int, out: int
) -> None:
    folder = tmp_path / str(next(FOLDERS))
    folder.mkdir()
    FORMATS[kind](folder / f"list.{kind}", [(_url(name, number, host), text) for name, number, text in rows])
    recipe = _recipe(folder, f"list.{kind}", host, shard=shard, out=out)
    stages.fetch(recipe)
    raw = _raw(recipe)
    assert sorted(row["input_row"] for row in raw) == list(range(len(rows)))
    whole = sum(name in ("ok", "small") for name, _, _ in rows)
    assert sum(row["status"] == "success" for row in raw) == whole
    assert all(row["error_class"] for row in raw if row["status"] != "success")
    stages.annotate(recipe)
    keys = sorted(row["key"] for row in raw if row["status"] == "success")
    for tables in Path(Job(recipe.job).url, "annotations").iterdir():
        annotated = [key for path in tables.glob("*.parquet") for key in pq.read_table(path)["key"].to_pylist()]
        assert sorted(annotated) == keys, tables.name
    summary = stages.select(recipe)
    ledger = pq.read_table(latest_decision(Job(recipe.job)).ledger.table).to_pylist()
    assert sorted(row["input_row"] for row in ledger) == list(range(len(rows)))
    assert all(row["kept"] == (row["step"] is None) for row in ledger)
    dropped = Counter(row["step"] for row in ledger if not row["kept"])
    assert {step.name: sum(step.dropped.values()) for step in summary.steps if step.dropped} == dropped
    kept = {row["uid"]: row for row in ledger if row["kept"]}
    assert len(kept) == summary.kept == len({number for name, number, _ in rows if name == "ok"})
    if kept:
        _check_dataset(recipe, kept, out)
    else:
        with pytest.raises(ValueError, match="keeps none of"):
            stages.build(recipe)
    shutil.rmtree(folder)


def _recipe(folder: Path, name: str, host: str, *, shard: int, out: int) -> Recipe:
    data: dict[str, Any] = {
        "job": str(folder / "job"),
        "unsafe_images": "off",
        "annotate": {"faces": {"detector": "haar", "accept_weak": True}},
        "input": {"urls": [str(folder / name)]},
        "fetch": {"samples_per_shard": shard, "allow_private": [host], "per_host": 30, "retries": 0},
        "select": [
            {"step": "rule", "name": "side", "keep": "least(image_width, image_height) >= 50"},
            {"step": "exact_duplicates"},
        ],
        "placement": {"samples_per_shard": out, "shuffle_window": 2},
        "engine": {"executor": "inline"},
    }
    return build_config(Recipe, data)


def _raw(recipe: Recipe) -> list[dict[str, Any]]:
    paths = sorted(Path(Job(recipe.job).raw).glob("*.parquet"))
    return [row for path in paths for row in pq.read_table(path).to_pylist()]


def _check_dataset(recipe: Recipe, kept: dict[str, dict[str, Any]], samples_per_shard: int) -> None:
    built = stages.build(recipe)
    dataset = open_dataset(Job(recipe.job).dataset)
    failures = [
        row
        for path in Path(Job(recipe.job).build_failures()).glob("*.parquet")
        for row in pq.read_table(path).to_pylist()
    ]
    assert built.num_failed == len(failures) == 0
    indexes = [row for number in range(len(dataset.shards)) for row in dataset.index(number).to_pylist()]
    assert Counter(row["uid"] for row in indexes) == Counter(kept.keys())
    for row in indexes:
        place = kept[row["uid"]]
        assert row["key"] == f"{place['out_shard']}{place['out_index']:06d}"
        assert row["url"] == place["url"]
    assert all(shard.num_samples == samples_per_shard for shard in dataset.shards[:-1])
    assert list(verify_dataset(Job(recipe.job).dataset, decode=True)) == []
