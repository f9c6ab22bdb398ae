"""benchmarks/gpu_check.py: nothing is claimed without a device, and one step's fault is that step's alone."""

import os
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))
import gpu_check  # noqa: E402
import gpu_decode  # noqa: E402

sys.path.pop(0)


def test_without_a_cuda_device_nothing_is_run_and_nothing_claimed(tmp_path: Path) -> None:
    """It says so, exits 0 and leaves no file behind that could be taken for a result."""
    answer = subprocess.run(
        [sys.executable, ROOT / "benchmarks/gpu_check.py", "--out", tmp_path / "out"],
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout == "gpu-check: no CUDA device here; nothing was run, nothing is claimed\n"
    assert not (tmp_path / "out").exists()


def test_a_step_that_does_not_exist_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a device too: a misspelt name must not look like a run."""
    monkeypatch.setattr(sys, "argv", ["gpu_check.py", "--only", "tests,trian"])
    with pytest.raises(SystemExit):
        gpu_check.main()
    assert "--only: unknown trian; known: tests, decode" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("program", "seconds", "status"),
    [
        ("print('done')", 200.0, "passed"),
        ("raise SystemExit(3)", 200.0, "failed (exit 3)"),
        ("import time; print('begun', flush=True); time.sleep(200)", 2.0, "out of time"),
    ],
)
def test_a_step_that_fails_or_hangs_is_called_so(tmp_path: Path, program: str, seconds: float, status: str) -> None:
    """The status is the process's own; one that hangs ends with its time."""
    begun = time.monotonic()
    result = gpu_check.run(gpu_check.Step("one", ("-c", program), 1.0), seconds, tmp_path, None)
    assert result.status == status
    assert time.monotonic() - begun < 150


def test_a_tar_without_photographs_is_refused_by_its_name(tmp_path: Path) -> None:
    """PHOTOS=TAR reaches `gpu_decode`, which would divide by their number."""
    with tarfile.open(tmp_path / "notes.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("notes.txt"))
    with pytest.raises(SystemExit, match=r"notes\.tar: no member is called \.jpg or \.jpeg"):
        gpu_decode.photographs(str(tmp_path / "notes.tar"))


def test_children_of_a_step_end_with_it(tmp_path: Path) -> None:
    """A loader's process that a killed benchmark leaves behind would slow all that is measured after it."""
    program = "import subprocess, sys; print(subprocess.Popen(['sleep', '300']).pid, flush=True)"
    result = gpu_check.run(gpu_check.Step("one", ("-c", program), 1.0), 200.0, tmp_path, None)
    for _ in range(2000):
        state = Path("/proc", result.last_line, "stat")
        if not state.exists() or ") Z" in state.read_text():
            return
        time.sleep(0.05)
    pytest.fail("the child still runs")


def test_the_list_of_cuda_tests_names_files_that_are_there() -> None:
    """What is run there is what may be skipped elsewhere."""
    files = gpu_check.cuda_tests()
    assert files
    assert [file for file in files if "mark.cuda" not in (ROOT / file).read_text()] == []
