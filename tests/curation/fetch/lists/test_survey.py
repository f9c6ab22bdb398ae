"""A look at the lists tells their rows, exactly where that is cheap, and what is odd in what was read."""

import gzip
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from list_reading import counts

from headrace.curation.fetch.config import InputConfig
from headrace.curation.fetch.lists import delimited, survey
from headrace.curation.fetch.lists.inputs import list_files
from headrace.curation.fetch.lists.rows import NO_URL


def look(*paths: Path, **settings: object) -> survey.Survey:
    config = InputConfig(urls=tuple(map(str, paths)), **settings)  # type: ignore[arg-type]
    return survey.survey(list_files(config), config)


def test_short_lists_and_parquet_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text("url,caption\nhttp://a/,x\nhttp://b/,y,z\n\n")
    pq.write_table(
        pa.table({"url": ["http://a/"] * 50_000, "caption": ["x"] * 49_999 + [None]}), tmp_path / "b.parquet"
    )
    monkeypatch.setattr(survey, "SURVEY_ROWS", 10_000)
    found = look(tmp_path / "a.csv", tmp_path / "b.parquet")
    assert (found.rows, found.exact) == (50_002, True)
    assert found.rows_read < 30_000
    assert counts(found.tally) == {delimited.MORE_CELLS: 1, delimited.BLANK: 1}


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_a_long_list_is_estimated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    lines = "".join(f"http://a.example/{number:020d}.jpg\n" for number in range(200_000)).encode()
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt{suffix}").write_bytes(gzip.compress(lines) if suffix else lines)
    size = (tmp_path / f"a.txt{suffix}").stat().st_size
    monkeypatch.setattr(survey, "SURVEY_BYTES", size // 4)
    found = look(*(tmp_path / f"{name}.txt{suffix}" for name in ("a", "b")))
    assert not found.exact
    assert found.num_bytes == 2 * size
    assert found.rows_read < 130_000
    assert abs(found.rows - 400_000) < 80_000


def test_a_list_beyond_what_is_read_must_have_its_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text("url,caption\n" + "http://a/,x\n" * 9000)
    (tmp_path / "b.csv").write_text("link,caption\nhttp://a/,x\n")
    monkeypatch.setattr(survey, "SURVEY_BYTES", 10)
    with pytest.raises(ValueError, match=r"b\.csv: no column 'url'"):
        look(tmp_path / "a.csv", tmp_path / "b.csv")


def test_what_a_run_would_refuse_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("url,caption,label\nhttp://a/,x,cat\n")
    with pytest.raises(ValueError, match="line 2: column 'label' holds 'cat'"):
        look(tmp_path / "a.csv", columns=("label",))
    pq.write_table(pa.table({"url": ["u"], "caption": ["c"], "n": [["text"]]}), tmp_path / "b.parquet")
    (tmp_path / "c.jsonl").write_text('{"url": "u", "caption": "c", "n": 1}\n')
    with pytest.raises(ValueError, match=r"c\.jsonl: a carried column has another type"):
        look(tmp_path / "b.parquet", tmp_path / "c.jsonl", columns=("n",))
    (tmp_path / "d.csv.gz").write_bytes(gzip.compress(b"url,caption\nhttp://a/,x\n" * 100)[:-9])
    with pytest.raises(ValueError, match=r"d\.csv\.gz: cannot be read as csv, compressed with gzip"):
        look(tmp_path / "d.csv.gz")
    (tmp_path / "e.txt").write_text("\n")
    assert counts(look(tmp_path / "e.txt").tally) == {NO_URL: 1}
