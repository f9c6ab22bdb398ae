"""The core does its commands in an environment that has no extra: no torch, no open_clip, no onnxruntime."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.full
@pytest.mark.timeout(900)
def test_the_core_runs_without_the_extras(tmp_path: Path) -> None:
    uv = str(Path(sys.executable).parent / "uv")
    python = tmp_path / "venv" / "bin" / "python"
    for command in (
        [uv, "venv", "--quiet", "--python", sys.executable, str(tmp_path / "venv")],
        [
            uv,
            "pip",
            "install",
            "--quiet",
            "--python",
            str(python),
            "-c",
            str(ROOT / "constraints.txt"),
            "-e",
            str(ROOT),
        ],
        [str(python), "-P", str(Path(__file__).with_name("core_program.py")), str(tmp_path)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        assert done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
