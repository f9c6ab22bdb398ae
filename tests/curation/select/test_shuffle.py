"""Work cut by a key: how many buckets there are shows nowhere, and a key that very many rows have fits the memory."""

import hashlib
import math
import pickle
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from select_jobs import flip_bits, hash_bytes, make_row, run, write_job

from headrace.curation.job import Job
from headrace.curation.ledger import latest_decision
from headrace.curation.select import parts, shuffle
from headrace.curation.select.database import Limits, count, insert, open_database, show_parquet, work_folder
from headrace.curation.select.expression import Checker
from headrace.curation.select.here import PartedHere
from headrace.curation.select.step import Bench
from headrace.curation.select.steps import (
    CaptionDuplicates,
    EmbeddingDuplicates,
    ExactDuplicates,
    NearDuplicates,
    Placeholders,
    Quota,
    Rule,
    SelectStep,
)
from headrace.shards.parquet import write_parquet
from headrace.shards.units import EngineConfig

ORDER = ("clip_score desc", "image_width asc")
# Captions and best copies change hands before the steps that look at them again.
STEPS: tuple[SelectStep, ...] = (
    Placeholders(min_urls=27),
    ExactDuplicates(captions="longest"),
    Quota(by="aspect", most=45, order=ORDER),
    NearDuplicates(distance=16, captions="longest"),
    Rule(name="late", keep="caption_chars > 14 or caption_chars is null", value="caption_chars"),
    Quota(name="captions", by="caption", most=4),
    NearDuplicates(name="cut", distance=24, chains="cut", order=ORDER),
    EmbeddingDuplicates(threshold=1.0, captions="best_score"),
    Quota(name="any case", by="caption collate nocase", share=0.01, order=ORDER),
    CaptionDuplicates(threshold=0.7, chains="join"),
)


def many_ties(folder: Path) -> Job:
    """Write 400 rows with few different values: NULL, NaN, both zeros, equal bytes, captions and embeddings."""
    rng = np.random.default_rng(4)
    hashes = hash_bytes(rng, 120)
    rows = []
    for number in range(400):
        near = flip_bits(hashes[number % 120], rng.choice(256, int(rng.integers(0, 20)), replace=False).tolist())
        caption = " ".join(rng.choice(["Red", "red", "house", "river"], 3).tolist()) + f" {number % 5}"
        values: dict[str, Any] = {
            "pdq": near,
            "pdq_trimmed": near,
            "sha256": f"{number % 3 if number % 5 == 0 else int(rng.integers(3, 300)):064x}",
            "caption": None if number % 6 == 0 else caption,
            "copy_embedding": None if number % 9 == 0 else [1.0, float(number % 40)],
            "clip_score": (None, math.nan, 0.5, float(rng.random()))[number % 4],
            "aspect": (None, math.nan, 0.0, -0.0, 1.0)[int(rng.integers(0, 5))],
            "image_width": int(rng.choice([40, 60])),
        }
        rows.append(make_row(number, **values))
    return write_job(folder, [rows[start : start + 50] for start in range(0, 400, 50)])


def bytes_of(job: Job) -> dict[str, str]:
    shutil.rmtree(job.ledgers, ignore_errors=True)
    assert all(step.dropped for step in run(job, STEPS).steps[2:])
    folder = Path(latest_decision(job).ledger.url)
    files = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}
    return files | {"folder": folder.name}


def test_the_number_of_buckets_changes_no_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = many_ties(tmp_path)
    whole = bytes_of(job)
    solved: list[str] = []

    def elsewhere(work: Callable[[Any], Any], units: Sequence[Any], _: object) -> list[Any]:
        solved.extend(unit.name for unit in units)
        return [pickle.loads(pickle.dumps(work(pickle.loads(pickle.dumps(unit))))) for unit in units]

    monkeypatch.setattr(shuffle, "run_units", elsewhere)
    monkeypatch.setattr(shuffle, "ALONE_ROWS", 0)
    monkeypatch.setattr(shuffle, "JUDGED_ROWS", 0)

    @settings(max_examples=2, phases=[Phase.generate])
    @given(rows_of_bucket=st.integers(100, 400), rows_of_part=st.integers(120, 400))
    def same(rows_of_bucket: int, rows_of_part: int) -> None:
        monkeypatch.setattr(shuffle, "BUCKET_ROWS", rows_of_bucket)
        monkeypatch.setattr(parts, "PART_ROWS", rows_of_part)
        solved.clear()
        assert bytes_of(job) == whole
        assert sum(name.startswith("bucket 1 of ") for name in solved) == 8, "every step by a key was cut"

    same()


def test_a_key_that_very_many_rows_have_fits_the_least_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shuffle, "ALONE_ROWS", 0)
    monkeypatch.setattr(shuffle, "BUCKET_ROWS", 100_000)
    size, files = 150_000, [tmp_path / "rows-0.parquet", tmp_path / "rows-1.parquet"]
    for number, file in enumerate(files):
        rows = np.arange(number * size, (number + 1) * size)
        text = np.char.zfill(rows.astype(str), 32)
        columns = {"sha256": np.where(rows % 50, "placeholder", text), "uid": text, "input_file": text}
        columns |= {"input_row": rows, "__caption_chars": rows % 7}
        write_parquet(str(file), pa.table({"__row": rows, **columns}))
    limits = Limits(memory_bytes=64 << 20, threads=1)
    with open_database(str(tmp_path / "ledger"), limits) as connection:
        connection.execute("CREATE TABLE captions (__row BIGINT)")
        here = PartedHere([0, size, 2 * size], files, np.ones(2 * size, bool), tuple(columns))
        kinds = {name: "BIGINT" if name == "input_row" else "VARCHAR" for name in columns}
        ready = ExactDuplicates(order=()).prepare(Checker(connection, kinds, {}))
        found = ready.run(Bench(connection, limits, 2 * size, 2 * size, {}, parts=here))
        assert found.details == {"groups": 1, "largest_group": 2 * size * 49 // 50}
        assert count(connection, "SELECT count(*) FROM verdict") == 2 * size * 49 // 50 - 1


def test_embeddings_of_more_bytes_than_the_memory_are_cut_into_more_buckets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, length = 40_000, 512
    rows = np.arange(size)
    vectors = np.random.default_rng(0).random((size // 2, length), np.float32).repeat(2, axis=0)
    embeddings = pa.ListArray.from_arrays(np.arange(size + 1, dtype=np.int32) * length, vectors.ravel())
    columns = {"copy_embedding": embeddings, "uid": rows.astype(str), "input_file": rows.astype(str)}
    columns |= {"input_row": rows}
    kinds = {"copy_embedding": "FLOAT[]", "uid": "VARCHAR", "input_file": "VARCHAR", "input_row": "BIGINT"}

    def linked(_: EmbeddingDuplicates, bench: Bench) -> dict[str, int]:
        insert(bench.connection, "grouped", pa.table({"__row": rows, "label": rows // 2}))
        return {}

    monkeypatch.setattr(EmbeddingDuplicates, "_link", linked)
    limits = Limits(memory_bytes=64 << 20, threads=1)
    with open_database(str(tmp_path / "ledger"), limits) as connection:
        connection.execute("CREATE TABLE captions (__row BIGINT)")
        file = work_folder(connection) / "rows.parquet"
        write_parquet(str(file), pa.table({"__row": rows, **columns}))
        show_parquet(connection, "here", [file])
        step = EmbeddingDuplicates(threshold=0.99, order=("input_row asc",), captions="own")
        ready = step.prepare(Checker(connection, kinds, {}))
        here = PartedHere([0, size], [file], np.ones(size, bool), tuple(columns))
        found = ready.run(Bench(connection, limits, size, size, {}, parts=here))
        assert found.details == {"groups": size // 2, "largest_group": 2, "most_dropped_for_one": 1}
        assert count(connection, "SELECT count(*) FROM verdict WHERE __row % 2 = 1 AND value > 0.99") == size // 2


def test_units_and_the_idle_database_share_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shuffle, "ALONE_ROWS", 0)
    memory, mib, seen = "SELECT current_setting('memory_limit')", 1 << 20, set()
    limits = Limits(memory_bytes=400 << 20, threads=1)
    with open_database(str(tmp_path / "ledger"), limits) as connection:
        connection.execute("CREATE TABLE captions (__row BIGINT)")
        file = work_folder(connection) / "rows.parquet"
        write_parquet(str(file), pa.table({"__row": np.arange(9), "key": np.arange(9)}))

        def watched(_: object, units: Sequence[Any], engine: EngineConfig) -> list[Any]:
            held = connection.execute(memory).fetchall()[0][0]
            seen.add((held, *(unit.limits.memory_bytes // mib for unit in units), engine.workers))
            if len(units) > 1:
                return [shuffle._Solved({}, ()) for _ in units]
            units[0].out.touch()
            return [{}]

        monkeypatch.setattr(shuffle, "run_units", watched)
        monkeypatch.setattr(shuffle, "take_parquet", lambda *_: None)
        here = PartedHere([0, 9], [file], np.ones(9, bool), ("key",))
        for workers in (3, 30):
            bench = Bench(connection, limits, 9, 9, {}, EngineConfig(workers=workers), parts=here)
            shuffle.solve_by_key(bench, "key", lambda _: {})
            assert connection.execute(memory).fetchall() == [("400.0 MiB",)]
    lowered = duckdb_lowers_a_locked_limit()
    assert seen == {("100.0 MiB" if lowered else "400.0 MiB", *[100] * units, 3) for units in (1, 2)} | {
        ("66.6 MiB" if lowered else "400.0 MiB", *[66] * units, 5) for units in (1, 2)
    }


def duckdb_lowers_a_locked_limit() -> bool:
    return bool(duckdb.execute("SELECT 1 FROM duckdb_settings() WHERE name = 'allowed_configs'").fetchall())
