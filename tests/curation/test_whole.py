"""A recipe run over a loopback web, whole: every engine writes the same job, and so does a run that is killed.

The one thing a reader would get wrong: `recipe.yaml` is the only file of a job that may differ between engines, and
it may differ in `engine` only.
"""

import csv
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml

from headrace.demo.encode import encode, resized, with_metadata
from headrace.demo.photographs import crop_face
from headrace.demo.server import SmallWeb
from headrace.demo.web import Entry, Planner, Reply, Site

pytestmark = [pytest.mark.full, pytest.mark.timeout(900)]

ray_warnings = pytest.mark.filterwarnings(
    "ignore::FutureWarning:ray", "ignore::ResourceWarning", "ignore::DeprecationWarning"
)
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
        "annotate": {"faces": {"detector": "haar", "accept_weak": True}},
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
    """Return the sha256 of every file but logs and what sites said (with times); of the recipe, without its engine."""
    job = folder / "job"
    found = {
        str(path.relative_to(job)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(job.rglob("*"))
        if path.is_file() and not {"logs", "permissions"} & set(path.relative_to(job).parts[:2])
    }
    recipe = yaml.safe_load((job / "recipe.yaml").read_text())
    del recipe["engine"]
    return {**found, "recipe.yaml": hashlib.sha256(yaml.safe_dump(recipe).encode()).hexdigest()}


def num_done(folder: Path, *stages: str) -> int:
    found = (path for stage in stages or DONE for pattern in DONE[stage] for path in (folder / "job").glob(pattern))
    # What a killed worker had not renamed yet is no piece of work.
    return sum(not path.name.startswith(".") for path in found)


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


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A Ray cluster of two nodes of one CPU each; workers begin in another folder than the drivers."""
    from ray.cluster_utils import Cluster

    nodes = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    nodes.add_node(num_cpus=1)
    nodes.wait_for_nodes()
    yield nodes
    nodes.shutdown()


def test_a_pool_of_processes_writes_the_same_job(whole: Path, small_web: SmallWeb, tmp_path: Path) -> None:
    folder = tmp_path / "other"
    write_recipe(folder, small_web, executor="local", workers=2)
    run(folder, "curate")
    assert job_files(folder) == job_files(whole)


@ray_warnings
def test_two_nodes_write_the_same_job(whole: Path, small_web: SmallWeb, tmp_path: Path, cluster: Any) -> None:
    folder = tmp_path / "two"
    write_recipe(folder, small_web, executor="ray", ray_address=cluster.address)
    run(folder, "curate")
    assert job_files(folder) == job_files(whole)


@ray_warnings
def test_a_node_lost_in_mid_job_costs_no_byte(whole: Path, small_web: SmallWeb, tmp_path: Path, cluster: Any) -> None:
    folder = tmp_path / "lost"
    write_recipe(folder, small_web, executor="ray", ray_address=cluster.address)
    for part in ("input", "raw"):  # it is lost in annotate
        shutil.copytree(whole / "job" / part, folder / "job" / part)
    shutil.copy(whole / "job/job.json", folder / "job")
    process = start(folder, "curate")
    deadline = time.monotonic() + MAX_SECONDS
    while num_done(folder, "annotate") < 2:
        assert process.poll() is None, (folder / "log.txt").read_text()
        assert time.monotonic() < deadline, "never ready to lose a node"
        time.sleep(0.01)
    cluster.remove_node(cluster.list_all_nodes()[-1], allow_graceful=False)
    assert process.wait(MAX_SECONDS) == 0, (folder / "log.txt").read_text()
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


# As Slurm's: the command in as many processes as the job has tasks, all at once; fails where one of them does.
SRUN = """#!/bin/bash
shift  # --kill-on-bad-exit=0
tasks=()
for ((number = 0; number < SLURM_NTASKS; number++)); do
    SLURM_PROCID=$number "$@" &
    tasks+=($!)
done
code=0
for task in "${tasks[@]}"; do wait "$task" || code=$?; done
exit $code
"""


def test_the_slurm_example_in_four_processes_writes_the_same_job(
    whole: Path, small_web: SmallWeb, tmp_path: Path
) -> None:
    folder, programs = tmp_path / "parts", tmp_path / "bin"
    write_recipe(folder, small_web, executor="inline")
    programs.mkdir()
    (programs / "srun").write_text(SRUN)
    (programs / "headrace").write_text(f'#!/bin/bash\nexec {sys.executable} -c "{MAIN}" "$@"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    script = Path(__file__).parents[2] / "examples" / "curate.sbatch"
    slurm = {"SLURM_NTASKS": "4", "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", str(script), "recipe.yaml"],
        cwd=folder,
        env={**os.environ, **slurm},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told = [f"{stage}: part {number}/4 is done" for stage in ("fetch", "annotate", "build") for number in range(1, 5)]
    assert [line for line in told if line not in done.stdout] == []
    assert job_files(folder) == job_files(whole)


def test_a_job_in_a_bucket_is_the_same_job(
    whole: Path, small_web: SmallWeb, tmp_path: Path, swift: int, s3_settings: Callable[[int], dict[str, Any]]
) -> None:
    folder = tmp_path / "bucket"
    write_recipe(folder, small_web, executor="inline")
    told = yaml.safe_load((folder / "recipe.yaml").read_text())
    # Every picture in the report is another request to a slow server.
    report = {"pictures": "none", "pairs": 0, "rows": 0}
    told |= {"job": "s3://jobs/a/job", "input": {"urls": ["s3://jobs/lists/list.csv"]}, "report": report}
    (folder / "recipe.yaml").write_text(yaml.safe_dump(told))
    store = fsspec.filesystem("s3", **s3_settings(swift))
    store.mkdir("jobs")
    store.put_file(str(folder / "list.csv"), "jobs/lists/list.csv")
    before = set(Path(tempfile.gettempdir()).iterdir())
    environment = {
        **os.environ,
        "FSSPEC_S3_ENDPOINT_URL": f"http://127.0.0.1:{swift}",
        "FSSPEC_S3_KEY": "test:tester",
        "FSSPEC_S3_SECRET": "testing",
    }
    assert start(folder, "curate", environment).wait(3 * MAX_SECONDS) == 0, (folder / "log.txt").read_text()
    store.get("jobs/a/job/", str(folder / "job"), recursive=True)
    found, expected = job_files(folder), job_files(whole)
    # These name the list or the job, or show less.
    named = {"recipe.yaml", "dataset/dataset.json", "report/report.html", "report/report.json"}
    assert {name for name in found.keys() | expected.keys() if found.get(name) != expected.get(name)} == named
    summaries = [json.loads((place / "job/dataset/dataset.json").read_text()) for place in (folder, whole)]
    assert summaries[0] | {"recipe_digest": ""} == summaries[1] | {"recipe_digest": ""}
    assert not [path for path in set(Path(tempfile.gettempdir()).iterdir()) - before if "headrace" in path.name]


# Read by every Python of a run: a worker dies where it would put a file of that name, and from so many files on the
# disk is full.
FAULTS = """
import errno, glob, multiprocessing, os, signal

kill, full, count = os.environ.get("KILL_AT"), os.environ.get("FULL_FROM"), int(os.environ.get("FULL_AT", "0"))
replace, fsync = os.replace, os.fsync

def replace_or_die(source, target, **options):
    if kill and kill in str(target) and multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target, **options)

def fsync_or_fail(handle):
    if full and len(glob.glob(full)) >= count:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    fsync(handle)

os.replace, os.fsync = replace_or_die, fsync_or_fail
"""


def test_killers_and_full_disks_are_named_and_cost_no_byte(whole: Path, small_web: SmallWeb, tmp_path: Path) -> None:
    folder, site = tmp_path / "faults", tmp_path / "site"
    write_recipe(folder, small_web, executor="local", workers=2)
    site.mkdir()
    (site / "sitecustomize.py").write_text(FAULTS)
    path = os.pathsep.join(filter(None, (str(site), os.environ.get("PYTHONPATH"))))
    faults: list[tuple[dict[str, str], str, str]] = [
        ({"KILL_AT": "raw/00001"}, "1 of 6 units killed their worker twice", "raw/00001 (SIGKILL)"),
        ({"FULL_FROM": "job/annotations/*/commits/*", "FULL_AT": "7"}, "No space left on device", "make room there"),
        ({"FULL_FROM": "job/dataset/commits/*", "FULL_AT": "2"}, "No space left on device", "make room there"),
        ({"KILL_AT": "dataset/shards/00006"}, "units killed their worker twice", "00006 (SIGKILL)"),
    ]
    for fault, *said in faults:
        (folder / "log.txt").unlink(missing_ok=True)
        process = start(folder, "curate", {**os.environ, "PYTHONPATH": path, **fault})
        assert process.wait(MAX_SECONDS) == 1, (folder / "log.txt").read_text()
        last = (folder / "log.txt").read_text().splitlines()[-1]
        assert [text for text in said if text not in last] == []
        noted = [str(place.relative_to(folder)) for place in (folder / "job").glob("quarantine/*/*")]
        assert bool(noted) == ("KILL_AT" in fault), noted
    assert num_done(folder, "build") == num_done(whole, "build") - 2  # but for the one that kills, and the manifest
    run(folder, "curate")
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


def test_a_list_that_grows_ends_in_a_dataset_of_all_of_it(small_web: SmallWeb, tmp_path: Path) -> None:
    folder = tmp_path / "grown"
    write_recipe(folder, small_web, executor="inline")
    listed = (folder / "list.csv").read_bytes()
    lines = listed.splitlines(keepends=True)
    (folder / "list.csv").write_bytes(b"".join(lines[:31]))
    run(folder, "curate")
    before = {name: digest for name, digest in job_files(folder).items() if name.startswith(("raw/", "annotations/"))}
    (folder / "list.csv").write_bytes(listed)
    arguments = [sys.executable, "-c", MAIN, "curate", "recipe.yaml"]
    plan = subprocess.run([*arguments, "--dry-run"], cwd=folder, capture_output=True, text=True, check=True).stdout
    assert "fetch: 30 rows are planned; 21 rows are new" in plan
    log = subprocess.run([*arguments, "--start-over"], cwd=folder, capture_output=True, text=True, check=True).stdout
    assert before.items() <= job_files(folder).items()
    assert "fetch: 51 rows, 44 images in 7 raw shards" in log
    assert "annotate: 44 samples in 7 shards" in log
    # Whatever the order of the rows, the same ones are kept as of the whole list (but for equals).
    assert "build: 33 samples in 7 shards" in log
    url = lines[45].split(b",")[0].decode()
    told = subprocess.run([*arguments[:3], "why", "job", url], cwd=folder, capture_output=True, text=True, check=True)
    assert "list.csv" in told.stdout
    assert re.search(r"raw/?.*0000[456]", told.stdout), told.stdout
