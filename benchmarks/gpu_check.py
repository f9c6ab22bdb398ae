"""Every CUDA test and benchmark of the stream and the trainer on this machine, in under nine minutes.

    make gpu-check [PHOTOS=photographs.tar]
    python benchmarks/gpu_check.py [--photos TAR] [--out gpu-check] [--minutes 9] [--only decode,train]

Each step is a process of its own with its part of the time; one that fails or runs out of time costs the others
nothing. What each printed is OUT/STEP.log, what it measured OUT/STEP.json; OUT/summary.md says what ran, and on what
machine. Exits 1 if a step failed or ran out of time. Without a CUDA device nothing is run and nothing claimed, and it
exits 0.
"""

import argparse
import itertools
import json
import os
import platform
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "triton", "nvidia-dali-cuda130", "nvidia-nvimgcodec-cu13", "numpy", "opencv-python-headless")


@dataclass(frozen=True, slots=True)
class Step:
    """One process: what it runs, and its part of the time."""

    name: str
    arguments: tuple[str, ...]
    """`{seconds}` becomes what the step has, `{json}` the file for its numbers, `{photos}` the photographs if some are
    given, `{tests}` the files of CUDA tests."""
    share: float


# A warning of a newer library than those of constraints.txt is no fault of this machine.
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default", "-m", "cuda", "{tests}")

TIMED = ("--budget-seconds", "{seconds}", "--json", "{json}")
STEPS = (
    Step("tests", PYTEST, 0.25),
    Step("decode", ("benchmarks/gpu_decode.py", "{photos}", *TIMED), 0.14),
    Step("colours", ("benchmarks/augment.py", "--device", "cuda"), 0.03),
    Step("copies", ("benchmarks/device_batches.py", *TIMED), 0.06),
    Step("train", ("benchmarks/train_step.py", "--device", "cuda", *TIMED), 0.27),
    Step("data", ("benchmarks/train_step.py", "--data", "{photos}", *TIMED), 0.25),
)


@dataclass(frozen=True, slots=True)
class Result:
    """How a step went."""

    name: str
    status: str
    """`passed`, `failed (exit N)` or `out of time`."""
    seconds: float
    command: str
    last_line: str = ""


def main() -> None:
    """Run the steps and write the summary."""
    arguments = _arguments()
    try:
        import torch
    except ImportError:
        sys.exit("gpu-check needs torch; install headrace[train]")
    if not torch.cuda.is_available():
        print("gpu-check: no CUDA device here; nothing was run, nothing is claimed")
        return
    out = Path(arguments.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    chosen = [step for step in STEPS if not arguments.only or step.name in arguments.only.split(",")]
    seconds = 60 * arguments.minutes / sum(step.share for step in chosen)
    results = []
    for step in chosen:
        results.append(run(step, seconds * step.share, out, arguments.photos))
        print(f"{step.name}: {results[-1].status} in {results[-1].seconds:.0f} s; {results[-1].last_line}", flush=True)
        (out / "summary.json").write_text(
            json.dumps({"machine": machine(), "steps": [asdict(one) for one in results]}, indent=1) + "\n"
        )
    (out / "summary.md").write_text(summary(machine(), results))
    print(f"gpu-check: {out / 'summary.md'}")
    if any(result.status != "passed" for result in results):
        sys.exit(1)


def run(step: Step, seconds: float, out: Path, photos: str | None) -> Result:
    """Run one step for at most `seconds`; its whole tree of processes ends with it."""
    given = {
        "{seconds}": [str(int(0.9 * seconds))],
        "{json}": [str(out / f"{step.name}.json")],
        "{photos}": ["--photos", photos] if photos else [],
        "{tests}": cuda_tests(),
    }
    command = [sys.executable, *itertools.chain.from_iterable(given.get(one, [one]) for one in step.arguments)]
    shown = " ".join(["python", *command[1:]])
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    begun, log = time.perf_counter(), out / f"{step.name}.log"
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(seconds)
            status = "passed" if code == 0 else f"failed (exit {code})"
        except subprocess.TimeoutExpired:
            status = "out of time"
        finally:
            _end(process)
    lines = log.read_text(errors="replace").strip().splitlines() or [""]
    return Result(step.name, status, time.perf_counter() - begun, shown, lines[-1])


def cuda_tests() -> list[str]:
    """Return the files of the tests that need a CUDA device: CI refuses one that this list lacks."""
    listed = (ROOT / "tests/allowed_skips.txt").read_text().splitlines()
    return sorted({line.partition("::")[0] for line in listed if line and not line.startswith("#")})


def _end(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    process.wait()


def machine() -> dict[str, Any]:
    """Return what the numbers were measured on."""
    import torch

    device = torch.cuda.get_device_properties(0)
    return {
        "gpu": device.name,
        "gpu_memory_gib": round(device.total_memory / 2**30, 1),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "packages": {name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def summary(on: dict[str, Any], results: Sequence[Result]) -> str:
    """Return the page for people."""
    packages = ", ".join(f"{name} {version}" for name, version in on["packages"].items())
    lines = [
        f"{on['gpu']} ({on['gpu_memory_gib']} GiB), {on['cores']} cores, Python {on['python']}, CUDA {on['cuda']}",
        f"{packages}",
        "",
        "| step | status | seconds | command |",
        "| --- | --- | --- | --- |",
        *(f"| {one.name} | {one.status} | {one.seconds:.0f} | `{one.command}` |" for one in results),
    ]
    return "\n".join(lines) + "\n"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", help="tar of photographs; without it the benchmarks make their own pictures")
    parser.add_argument("--out", default="gpu-check")
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--only", help="names of steps, by comma: " + ", ".join(step.name for step in STEPS))
    arguments = parser.parse_args()
    known = [step.name for step in STEPS]
    if unknown := [name for name in filter(None, (arguments.only or "").split(",")) if name not in known]:
        parser.error(f"--only: unknown {', '.join(unknown)}; known: {', '.join(known)}")
    return arguments


if __name__ == "__main__":
    main()
