"""`headrace demo` end to end on a seed nobody chose."""

import json
import secrets
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from headrace.demo import run
from headrace.pipeline import open_stream

FETCH_KINDS = (
    "bad_url",
    "bomb",
    "empty",
    "file_scheme",
    "html_as_jpeg",
    "http_error",
    "opted_out",
    "private_address",
    "private_redirect",
    "redirect_loop",
    "refused_port",
    "slow_host",
    "too_large",
    "truncated",
    "unresolvable",
)
RULE_KINDS = ("aspect", "copy_exact", "short_caption", "tiny", "unsafe_text")
EVALUATION_KINDS = tuple(f"evaluation_{name}" for name in ("flipped", "padded", "reencoded", "resized"))
HEADRACE = (sys.executable, "-c", "from headrace.cli.app import main; main()")


def test_a_command_that_takes_too_long_is_named_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\necho first words; echo last words; touch {tmp_path}/said; exec sleep 3600\n")
    program.chmod(0o755)
    real = subprocess.Popen

    class OnceSaid(real):
        def communicate(self, *arguments: Any, **options: Any) -> Any:
            until = time.monotonic() + 300
            while not (tmp_path / "said").exists():
                assert time.monotonic() < until
                time.sleep(0.02)
            return super().communicate(*arguments, **options)

    monkeypatch.setattr(subprocess, "Popen", OnceSaid)
    monkeypatch.setattr(sys, "executable", str(program))
    monkeypatch.setattr(run, "COMMAND_SECONDS", 0.001)
    with pytest.raises(
        ValueError, match=r"headrace steps took over .* said last: first words \| last words \(all of it"
    ):
        run._headrace(tmp_path, "steps")


@pytest.mark.full
@pytest.mark.timeout(1500)
def test_the_demo_finds_what_was_planted(tmp_path: Path) -> None:
    seed = secrets.randbelow(1_000_000)
    print(f"seed {seed}")  # noqa: T201 - to draw the same web again after a failure
    out = tmp_path / "demo"
    done = subprocess.run(
        [*HEADRACE, "demo", "--out", str(out), "--seed", str(seed)],
        capture_output=True,
        text=True,
        timeout=1400,
        check=False,
    )
    assert done.returncode == 0, f"seed {seed}: {done.stdout}\n{done.stderr}"
    data = json.loads((out / "demo.json").read_text())
    rows = {row["kind"]: row for row in data["rows"]}
    assert all(data["promises"].values())
    assert data["private_connections"] == 0
    assert all(row["planted"] == row["found"] + row["missed"] for row in data["rows"])
    assert sum(row["planted"] + row["near_misses"] for row in data["rows"]) == data["num_rows"]
    missed = {kind: (rows[kind]["missed"], rows[kind]["wrongly_dropped"]) for kind in rows}
    for kind in (*FETCH_KINDS, *RULE_KINDS, *EVALUATION_KINDS):
        assert rows[kind]["missed"] == 0, f"seed {seed}: {kind} in {missed}; {data['not_as_planted']}"
    assert rows["true_pair"]["missed"] <= 0.1 * rows["true_pair"]["planted"]
    assert rows["wrong_caption"]["found"] >= 0.9 * rows["wrong_caption"]["planted"]
    assert rows["unsafe_image"]["found"] >= 0.75 * rows["unsafe_image"]["planted"]
    assert rows["face"]["found"] >= 0.5 * rows["face"]["planted"]
    assert sum(row["wrongly_dropped"] for row in data["rows"]) <= 0.1 * data["num_kept"]
    for name in ("report", "dataset", "checkpoint"):
        assert Path(data[name]).exists()
    check_traces(out)


def check_traces(out: Path) -> None:
    """From a step of the demo's run to pictures, URLs and ledger rows in one command; from a URL back to its steps."""
    page = out / "step.html"
    traced = answer("trace", out / "pretrain", "--step", 7, "--out", page)
    assert (traced["proof"], traced["pictures"], page.read_text().count("<img")) == ("proven", 32, 32)
    curated = [sample for sample in traced["samples"] if sample["source"] == "curated"]
    assert len(curated) == 26
    urls = (out / "urls.csv").read_text()
    for sample in curated:
        assert sample["url"] in urls
        assert sample["verdict"]["kept"]
        assert {step["outcome"] for step in sample["verdict"]["steps"]} == {"passed"}
    assert all(sample["imported_from"] for sample in traced["samples"] if sample["source"] == "labelled")
    found = answer("audit", out / "pretrain", *(word for one in curated for word in ("--url", one["url"])))["rows"]
    replayed: dict[str, list[tuple[int, int]]] = {}
    with open_stream(out / "mixture.yaml", global_batch=32) as stream:
        for step in range(1, 61):
            batch = next(stream)
            for key, source, position in zip(batch.key, batch.source.tolist(), batch.position.tolist(), strict=True):
                if not source:
                    replayed.setdefault(key, []).append((step, position))
    for sample in curated:
        steps = [(row["step"], row["position"]) for row in found if row["key"] == sample["key"]]
        assert steps == replayed[sample["key"]]
    (story,) = json.loads(headrace("why", out / "job", curated[0]["key"], "--json"))
    assert (story["url"], story["kept"]) == (curated[0]["url"], True)


def headrace(*arguments: object) -> str:
    words = [*HEADRACE, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, timeout=300, check=True).stdout


def answer(*arguments: object) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(headrace(*arguments, "--json"))
    return data


def test_a_folder_that_is_not_an_earlier_demo_is_left_alone(tmp_path: Path) -> None:
    from headrace.cli.demo import demo_command
    from headrace.demo.run import run_demo

    precious = tmp_path / "precious.txt"
    precious.write_text("mine")
    with pytest.raises(ValueError, match="not the folder of an earlier demo"):
        run_demo(tmp_path, seed=1, on_step=lambda _: None)
    with pytest.raises(ValueError, match="not the folder of an earlier demo"):
        demo_command(tmp_path, seed=1, dry_run=True)
    assert precious.read_text() == "mine"
