"""A recipe run over a loopback web, whole: every engine writes the same job, and so does a run that is killed.

The one thing a reader would get wrong: `recipe.yaml` is the only file of a job that may differ between engines, and
it may differ in `engine` only.
"""

import csv
import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from headrace.demo.encode import encode, resized, with_metadata
from headrace.demo.photographs import crop_face
from headrace.demo.server import SmallWeb
from headrace.demo.web import Entry, Planner, Reply, Site

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]

MAIN = "from headrace.cli.app import main; main()"
NUM_SCENES = 40
MAX_SECONDS = 180
# What says that a piece of work is done, stage by stage; a run is over when all of it is there.
DONE: dict[str, tuple[str, ...]] = {
    "fetch": ("raw/commits/*",),
    "annotate": ("annotations/*/commits/*",),
    "select": ("ledger/*/summary.json", "ledger/latest.json"),
    "build": ("dataset/commits/*", "dataset/dataset.json"),
    "report": ("report/report.html",),
}


def plan_web() -> Site:
    """Forty scenes, copies of two of them, a face, and links that fail in several ways."""
    planner = Planner(7)
    scenes = [planner.scene("scene") for _ in range(NUM_SCENES)]
    bodies = [
        with_metadata(pixels, ("jpeg", "png", "webp")[number % 3], orientation=(1, 6)[number % 2], secret="here")
        for number, (_, pixels) in enumerate(scenes)
    ]
    captions = [planner.caption(scene) for scene, _ in scenes]
    pages = [
        *zip(captions, (Reply(body=body) for body in bodies), strict=True),
        ("the same bytes", Reply(body=bodies[0])),
        ("a smaller copy", Reply(body=encode(resized(scenes[1][1], 0.7), quality=60))),
        ("a face", Reply(body=encode(crop_face(planner.rng("face"))[0]))),
        ("at the second attempt", Reply(body=bodies[2], failures=1)),
        ("cut short", Reply(body=bodies[3][:900])),
        ("a page", Reply(body=b"<html>nothing here</html>")),
        ("gone", Reply(status=404)),
    ]
    for number, (caption, reply) in enumerate(pages):
        url = f"http://{{server}}/{number}.jpg"
        planner.add(Entry(url=url, caption=caption, kind="page", fault=False, reply=reply))
    for url in ("http://{closed}/a.jpg", "http://{private}/a.jpg", "file:///etc/hosts", "not a url"):
        planner.add(Entry(url=url, caption="never", kind="refused", fault=True))
    return planner.finish(secret=b"")


@pytest.fixture(scope="module")
def small_web() -> Iterator[SmallWeb]:
    with SmallWeb(plan_web(), secret_path="") as running:
        yield running


def write_recipe(folder: Path, web: SmallWeb, **engine: Any) -> None:
    """Write `recipe.yaml` and its list; the job is `job` beside them, by a relative path."""
    folder.mkdir()
    rows = plan_web().rows(web.addresses)
    with (folder / "list.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("url", "caption"), *rows])
    recipe = {
        "job": "job",
        "seed": 3,
        "unsafe_images": "off",
        "input": {"urls": ["list.csv"]},
        "fetch": {"samples_per_shard": 9, "allow_private": list(web.allowed), "backoff_seconds": 0.01},
        "select": [
            {"step": "rule", "name": "side", "keep": "least(image_width, image_height) >= 50"},
            {"step": "exact_duplicates"},
            {"step": "near_duplicates"},
            {"step": "top_fraction", "score": "pdq_quality", "fraction": 0.8},
        ],
        "placement": {"samples_per_shard": 5, "shuffle_window": 2},
        "engine": engine,
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def start(folder: Path, command: str, environment: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    with (folder / "log.txt").open("ab") as log:
        arguments = [sys.executable, "-c", MAIN, command, "recipe.yaml"]
        environment = {**(environment or os.environ), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(arguments, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)


def run(folder: Path, *commands: str) -> None:
    for command in commands:
        assert start(folder, command).wait(MAX_SECONDS) == 0, (folder / "log.txt").read_text()


def job_files(folder: Path) -> dict[str, str]:
    """Return the sha256 of every file of the job but its logs; of the recipe, without its engine."""
    job = folder / "job"
    found = {
        str(path.relative_to(job)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(job.rglob("*"))
        if path.is_file() and path.relative_to(job).parts[0] != "logs"
    }
    recipe = yaml.safe_load((job / "recipe.yaml").read_text())
    del recipe["engine"]
    return {**found, "recipe.yaml": hashlib.sha256(yaml.safe_dump(recipe).encode()).hexdigest()}


def num_done(folder: Path, *stages: str) -> int:
    return sum(len(list((folder / "job").glob(pattern))) for stage in stages or DONE for pattern in DONE[stage])


@pytest.fixture(scope="module")
def whole(small_web: SmallWeb, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the job of one uninterrupted run in one process."""
    folder = tmp_path_factory.mktemp("whole") / "inline"
    write_recipe(folder, small_web, executor="inline")
    run(folder, "curate")
    assert small_web.num_private_connections == 0
    log = (folder / "log.txt").read_text()
    for said in (
        "fetch: 51 rows, 44 images in 6 raw shards; failed: bad-url 1, connect 1, http-4xx 1, not-image 1, "
        "refused-address 1, refused-scheme 1, truncated 1",
        "annotate: 44 samples in 6 shards, 30 tables written; 0 images do not decode",
        "dropped: fetch 7, exact_duplicates 2, near_duplicates 1, top_fraction 8",
        "build: 33 samples in 7 shards",
    ):
        assert said in log, log
    return folder


@pytest.mark.parametrize("executor", ["local", "ray"])
def test_every_engine_writes_the_same_job(whole: Path, small_web: SmallWeb, tmp_path: Path, executor: str) -> None:
    folder = tmp_path / "other"
    write_recipe(folder, small_web, executor=executor, workers=2)
    run(folder, "curate")
    assert job_files(folder) == job_files(whole)


def test_the_stages_one_by_one_and_all_again_write_the_same_job(
    whole: Path, small_web: SmallWeb, tmp_path: Path
) -> None:
    folder = tmp_path / "stages"
    write_recipe(folder, small_web, executor="inline")
    run(folder, *DONE)
    assert job_files(folder) == job_files(whole)
    run(folder, "curate", *DONE)
    assert job_files(folder) == job_files(whole)


def kill_after(folder: Path, target: int, seconds: float, environment: dict[str, str]) -> int:
    """Start a run, kill its driver some `seconds` after `target` commits are there; return the commits there now."""
    process = start(folder, "curate", environment)
    deadline = time.monotonic() + MAX_SECONDS
    while num_done(folder) < target:
        assert process.poll() is None, (folder / "log.txt").read_text()
        assert time.monotonic() < deadline, "never ready to be killed"
        time.sleep(0.002)
    time.sleep(seconds)
    assert process.poll() is None, "the driver ended before it could be killed"
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait(MAX_SECONDS) == -signal.SIGKILL
    return num_done(folder)


def test_a_killed_run_goes_on_to_the_same_job(
    whole: Path, small_web: SmallWeb, tmp_path: Path, hold: Callable[[str, int], dict[str, str]]
) -> None:
    folder = tmp_path / "killed"
    write_recipe(folder, small_web, executor="local", workers=2)
    total = num_done(whole)
    seed = int(os.environ.get("HEADRACE_KILL_SEED", time.time_ns() % 100_000))
    print(f"HEADRACE_KILL_SEED={seed}")  # noqa: T201
    moments = random.Random(seed)
    before, held = 0, hold(f"{folder}/job/report/report.json", 1)
    for stage in DONE:
        # Some moment of this stage: after that many pieces of work, and a little later.
        target = before + moments.randrange(num_done(whole, stage))
        before += num_done(whole, stage)
        left = total - kill_after(folder, target, moments.uniform(0, 0.05), held)
        print(f"killed in {stage}, after {target} of {total} commits; {left} were left to do")  # noqa: T201
        assert left > 0, "nothing was left to do at the kill, so this proved nothing"
    run(folder, "curate")
    assert job_files(folder) == job_files(whole)
