"""Run the real commands over the small web, then compare with the truth.

Every step that a user would type is a process of its own: `headrace import`, `train`, `curate`, `probe`. The one thing
a reader would get wrong: before the end the truth enters in one number only, the size of the cut.
"""

import csv
import dataclasses
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from importlib import resources
from pathlib import Path
from string import Template
from typing import Any

from headrace.curation.job import Job
from headrace.curation.ledger import latest_decision
from headrace.demo import truth
from headrace.demo.pairs import unsafe_drawings, write_clean_pairs, write_labelled
from headrace.demo.server import SmallWeb
from headrace.demo.unsafe_model import train_unsafe_model
from headrace.demo.web import Entry, Site, plan_site

MARKER = ".headrace-demo"
NUM_CLEAN_PAIRS, NUM_UNSAFE_DRAWINGS = 2000, 900
LABELLED_PER_CLASS, TEST_PER_CLASS = 50, 20
# Few images need many passes; the rates are the top of what the probe tries by itself and above.
PROBE_OPTIONS = ("--epochs", "60", "--lrs", "0.001,0.003,0.01")
# A minute or less on two idle cores; measured with fifteen busy processes on them: 537 s for the filtering network,
# and over 1200 s at a fiftieth of a core. It is there for a process that hangs.
COMMAND_SECONDS = 3600
LOG_TAIL_LINES = 3

OnStep = Callable[[str], None]
"""Called with what is done next."""


@dataclasses.dataclass(frozen=True, slots=True)
class DemoResult:
    """What the demo ends with; `demo.json` holds the same."""

    rows: tuple[truth.Row, ...]
    promises: Mapping[str, bool]
    """The hard promises: what must be True for exit code 0."""
    data: Mapping[str, Any]
    """All of demo.json."""


def run_demo(out: Path, *, seed: int, on_step: OnStep) -> DemoResult:
    """Draw the web, curate it, train on it, and write `OUT/demo.json`. Raises ValueError if a command fails."""
    out = _fresh_folder(out)
    started = time.monotonic()
    on_step("draw the small web")
    site = plan_site(seed)
    _write_site(out, site)
    with ThreadPoolExecutor(1) as pool:
        filter_trained = pool.submit(_train_filter, out, seed, on_step)
        on_step("train a classifier of the drawn unsafe class")
        pictures, unsafe = unsafe_drawings(seed=seed + 2, count=NUM_UNSAFE_DRAWINGS)
        train_unsafe_model(pictures, unsafe, out / "unsafe.onnx", seed=seed)
        filter_trained.result()
    with SmallWeb(site, secret_path=str(out / "private" / "secret.jpg")) as small_web:
        rows = site.rows(small_web.addresses)
        _write_urls(out / "urls.csv", rows)
        _fill(out, "recipe.yaml", seed=seed, fraction=round(site.true_share, 9), allowed=json.dumps(small_web.allowed))
        on_step("headrace curate: fetch, annotate (faces by OpenCV's weak Haar, no download), select, build, report")
        _headrace(out, "curate", str(out / "recipe.yaml"))
    accuracy = _pretrain(out, seed, on_step)
    entries = [(url, entry) for (url, _), entry in zip(rows, site.entries, strict=True)]
    return _conclude(out, site, entries, small_web.num_private_connections, accuracy, time.monotonic() - started)


def _train_filter(out: Path, seed: int, on_step: OnStep) -> None:
    on_step("draw clean pairs of another seed; headrace import")
    write_clean_pairs(out / "clean.parquet", seed=seed + 1, count=NUM_CLEAN_PAIRS)
    _headrace(out, "import", str(out / "clean.parquet"), str(out / "clean"))
    on_step("headrace train: the data filtering network, a small CLIP")
    _fill(out, "filter.yaml", seed=seed)
    _headrace(out, "train", str(out / "filter.yaml"))


def _pretrain(out: Path, seed: int, on_step: OnStep) -> float:
    on_step("draw a labelled set; headrace import")
    for name, offset, count in (("labelled", 3, LABELLED_PER_CLASS), ("labelled-test", 4, TEST_PER_CLASS)):
        write_labelled(out / "folders" / name, seed=seed + offset, per_class=count)
        _headrace(out, "import", str(out / "folders" / name), str(out / name), log=f"import-{name}")
    on_step("headrace train: AIM on 0.8 curated, 0.2 labelled")
    _fill(out, "mixture.yaml", seed=seed)
    _fill(out, "pretrain.yaml", seed=seed)
    _headrace(out, "train", str(out / "pretrain.yaml"), log="pretrain")
    on_step("headrace probe: an attentive probe on the frozen trunk")
    labelled = ("--train", str(out / "labelled"), "--test", str(out / "labelled-test"))
    _headrace(out, "probe", str(out / "pretrain"), *labelled, *PROBE_OPTIONS, "--out", str(out / "probe.json"))
    return float(json.loads((out / "probe.json").read_text())["accuracy"])


def _conclude(
    out: Path, site: Site, entries: list[tuple[str, Entry]], private: int, accuracy: float, seconds: float
) -> DemoResult:
    ledger = truth.read_ledger(latest_decision(Job(str(out / "job"))).ledger.table)
    built, num_built = truth.read_built(str(out / "job" / "dataset"), ledger)
    verdicts = truth.judge(entries, ledger, built)
    rows = truth.table(entries, verdicts)
    num_kept = sum(kept for kept, _ in ledger.values())
    held_out_kept = [
        url for url, entry in entries if entry.kind.startswith("evaluation") and entry.fault and url in built
    ]
    promises = {
        "no near-duplicate of the evaluation set was kept": not held_out_kept,
        "no connection reached the private address": private == 0,
        "every row of the list has one row in the ledger": set(ledger) == {url for url, _ in entries},
        "every kept row is in the dataset": num_kept == num_built == len(built),
    }
    data = {
        "rows": [dataclasses.asdict(row) for row in rows],
        "seed": site.seed,
        "promises": promises,
        "private_connections": private,
        "num_rows": len(entries),
        "num_kept": num_kept,
        "fraction": round(site.true_share, 9),
        "probe_accuracy": accuracy,
        "report": str(out / "job" / "report" / "report.html"),
        "dataset": str(out / "job" / "dataset"),
        "checkpoint": str(out / "pretrain"),
        "filter": str(out / "filter"),
        "seconds": round(seconds, 1),
        "not_as_planted": truth.not_as_planted(entries, verdicts),
    }
    (out / "demo.json").write_text(json.dumps(data, indent=1) + "\n")
    return DemoResult(rows=tuple(rows), promises=promises, data=data)


def check_folder(out: Path) -> None:
    """Raise ValueError if `out` holds anything but an earlier demo."""
    if out.exists() and not (out / MARKER).is_file() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out.absolute()} exists and is not the folder of an earlier demo; name another with --out")


def _fresh_folder(out: Path) -> Path:
    """Return the absolute path of a new folder; an earlier demo there is removed, anything else is refused."""
    out = out.absolute()
    check_folder(out)
    if out.exists():
        shutil.rmtree(out)
    out.mkdir(parents=True)
    (out / MARKER).write_text("This folder was written by headrace demo, which may remove it.\n")
    return out


def _write_site(out: Path, site: Site) -> None:
    for name, data in (
        *(("evaluation/" + name, data) for name, data in site.evaluation),
        ("private/secret.jpg", site.secret),
    ):
        path = out / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(data)


def _write_urls(path: Path, rows: list[tuple[str, str]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("url", "caption"), *rows])


def _fill(out: Path, name: str, **values: Any) -> None:
    """Write the packaged YAML file `name` to OUT with `$out` and the values filled in."""
    text = (resources.files("headrace.demo") / name).read_text(encoding="utf-8")
    # A JSON string without its quotes is safe inside YAML's double quotes.
    filled = Template(text).substitute(out=json.dumps(str(out), ensure_ascii=False)[1:-1], **values)
    (out / name).write_text(filled, encoding="utf-8")


def _headrace(out: Path, command: str, *arguments: str, log: str = "") -> None:
    """Run `headrace COMMAND ARGUMENTS` as a process; its output goes to OUT/logs."""
    path = out / "logs" / f"{log or command}.txt"
    path.parent.mkdir(exist_ok=True)
    program = [sys.executable, "-c", "from headrace.cli.app import main; main()", command, *arguments]
    # Networks as small as these gain little from a second thread, and lose much where the cores are shared.
    environment = {"OMP_NUM_THREADS": "1", **os.environ}
    with path.open("wb") as file:
        try:
            done = subprocess.run(
                program, stdout=file, stderr=subprocess.STDOUT, env=environment, timeout=COMMAND_SECONDS, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise ValueError(
                f"headrace {command} took over {COMMAND_SECONDS} s (on two idle cores: a minute) and was stopped; "
                f"it said last: {_tail(path)} (all of it: {path}); if it got on, run the demo where less else runs"
            ) from error
    if done.returncode:
        tail = _tail(path)
        raise ValueError(f"headrace {command} ended with exit code {done.returncode}: {tail} (all of it: {path})")


def _tail(path: Path) -> str:
    return " | ".join(path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])
