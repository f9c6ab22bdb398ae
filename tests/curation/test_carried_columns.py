"""Columns of a list, from there to the index of the dataset: every type and name, or refused before a request."""

import http.server
import importlib.util
import io
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from headrace.cli.app import main
from headrace.shards import open_dataset
from headrace.shards.verify import verify_dataset

Run = Callable[..., tuple[int, str]]


def load_types() -> Any:
    path = Path(__file__).parent / "fetch/lists/parquet_types.py"
    spec = importlib.util.spec_from_file_location("parquet_types_of_lists", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CARRIED = load_types().CARRIED


class Images(http.server.BaseHTTPRequestHandler):
    """Answers /N.jpg with a picture of its own; the server counts."""

    def do_GET(self) -> None:
        self.server.asked += 1  # type: ignore[attr-defined]
        stream = io.BytesIO()
        pixels = np.random.default_rng(len(self.path)).integers(0, 256, (40, 48, 3), np.uint8)
        Image.fromarray(pixels).save(stream, "JPEG")
        self.send_response(200)
        self.send_header("Content-Length", str(stream.tell()))
        self.end_headers()
        self.wfile.write(stream.getvalue())

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def images() -> Iterator[Any]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Images) as server:
        server.asked = 0  # type: ignore[attr-defined]
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def curate(images: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Write a parquet list (or the text of another) with columns, run `headrace curate`; return code and output."""
    allowed = f"127.0.0.1:{images.server_port}"

    def run(columns: dict[str, Any] | str, *flags: str, name: str = "l.parquet", **recipe: Any) -> tuple[int, str]:
        path = tmp_path / name
        if isinstance(columns, str):
            path.write_text(columns.replace("SERVER", f"http://{allowed}"))
        else:
            rows = len(next(iter(columns.values())))
            links = [f"http://{allowed}/{row}.jpg" for row in range(rows)]
            pq.write_table(pa.table({"url": links, "caption": links, **columns}), path)
        whole = {
            "job": str(tmp_path / f"job-{name}"),
            "unsafe_images": "off",
            "input": {"urls": [str(path)], "columns": recipe.pop("carry", list(columns))},
            "fetch": {"allow_private": [allowed], "samples_per_shard": 2},
            "annotate": {"faces": None, **recipe.pop("annotate", {})},
            "build": {"blur_faces": False, "columns": recipe.pop("built", list(columns))},
            "engine": {"executor": "inline"},
            **recipe,
        }
        (tmp_path / "r.json").write_text(json.dumps(whole))
        monkeypatch.setattr(sys, "argv", ["headrace", "curate", str(tmp_path / "r.json"), *flags])
        with pytest.raises(SystemExit) as stopped:
            main()
        text = "".join(capsys.readouterr())
        return (1, text + stopped.value.code) if isinstance(stopped.value.code, str) else (0, text)

    return run


def index_of(job: Path) -> dict[str, list[Any]]:
    """The columns of the dataset, rows in the order of the list."""
    dataset = open_dataset(str(job / "dataset"))
    assert list(verify_dataset(str(job / "dataset"))) == []
    table = pa.concat_tables([dataset.index(shard) for shard in range(len(dataset.shards))])
    return table.sort_by("url").to_pydict()


def test_every_type_of_parquet_keeps_its_values_to_the_index(curate: Run, tmp_path: Path) -> None:
    code, text = curate(CARRIED, select=[{"step": "rule", "name": "all", "keep": "int32 is null or int32 < 5"}])
    assert code == 0, text
    index = index_of(tmp_path / "job-l.parquet")
    read = pq.read_table(tmp_path / "l.parquet")
    for name in CARRIED:
        assert index[name] == read[name].to_pylist(), name


def test_every_type_may_stand_in_a_rule(curate: Run, tmp_path: Path) -> None:
    rules = [
        {"step": "rule", "name": f"r{number}", "keep": f'"{name}" is null or "{name}" = "{name}"'}
        for number, name in enumerate(CARRIED)
    ]
    code, text = curate(CARRIED, select=rules, built=[])
    assert code == 0, text
    assert len(index_of(tmp_path / "job-l.parquet")["url"]) == 3


@pytest.mark.parametrize("built", [["label"], []])
@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "float"])
def test_whole_numbers_become_the_label(curate: Run, tmp_path: Path, kind: str, built: list[str]) -> None:
    name = f"l.{kind.replace('float', 'parquet')}"
    columns: Any = {"label": pa.array([4.0, float("nan"), 0.0]) if kind == "float" else pa.array([4, None, 0])}
    if kind == "csv":
        columns = "url,caption,label\n" + "".join(
            f"SERVER/{row}.jpg,c,{label}\n" for row, label in enumerate(["4", "", "0"])
        )
    elif kind == "jsonl":
        texts = ['"4"', "NaN", "0"]
        columns = "".join(
            f'{{"url": "SERVER/{n}.jpg", "caption": "c", "label": {text}}}\n' for n, text in enumerate(texts)
        )
    code, text = curate(columns, name=name, carry=["label"], built=built)
    assert code == 0, text
    assert index_of(tmp_path / f"job-{name}")["label"] == [4, None, 0]


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"label": ["cat", "dog"]}, "column 'label' holds 'cat'"),
        ({"label": [[1], [2]]}, "column 'label' is of type list<"),
        ({"label": [0.5, 1.0]}, "'label'"),
        ({"aspect": ["wide", "tall"]}, "'aspect' is a column that annotate.image makes"),
        ({"Caption_Chars": [1, 2]}, "'Caption_Chars' is a column that annotate.caption makes"),
        ({"orientation": [1, 2]}, "'orientation' is a column that annotate.image makes"),
        ({"size": [1, 2]}, "every dataset has a column 'size' of its own"),
        ({"crc32": [1, 2], "x": [1, 2]}, "every dataset has a column 'crc32' of its own"),
        ({"reencoded": [1, 2]}, "every dataset has a column 'reencoded' of its own"),
        ({"caption_of": [1, 2]}, "every dataset has a column 'caption_of' of its own"),
        ({"Sha256": [1, 2]}, "headrace writes Sha256 itself"),
        ({"x": pa.array([1, 2], pa.decimal256(60, 1))}, "column 'x' is of type decimal256(60, 1)"),
    ],
)
def test_what_a_later_stage_would_refuse_is_refused_before_a_request(
    curate: Run, images: Any, columns: dict[str, Any], reason: str
) -> None:
    for flags in (["--dry-run"], []):
        code, text = curate(columns, *flags)
        assert (code, images.asked) == (1, 0)
        assert reason in text
        assert "Traceback" not in text
        assert len(text.splitlines()[-1]) < 1000


def test_a_column_that_nothing_makes_is_refused_before_a_request(curate: Run, images: Any) -> None:
    code, text = curate({"x": [1, 2]}, built=["x", "clip_embedding"])
    assert (code, images.asked) == (1, 0)
    assert "build.columns: nothing makes 'clip_embedding'" in text


def test_names_that_mean_something_elsewhere_are_kept(curate: Run, tmp_path: Path) -> None:
    names = ["kept", "step", "reason", "source", "txt", "json", "jpg", "__key__", "row", "rowid", "__pdq_0", "uid2"]
    names += ["Score", "score", "select", "a b", 'quo"te', "\u00e9", "dropped", "duplicate_of", "out_shard"]
    columns = {name: [number, number + 100] for number, name in enumerate(names)}
    code, text = curate(columns, select=[{"step": "rule", "name": "all", "keep": "rowid >= 0 and kept >= 0"}])
    assert code == 0, text
    index = index_of(tmp_path / "job-l.parquet")
    assert {name: index[name] for name in names} == columns
