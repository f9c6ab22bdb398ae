"""A worker that is killed again and again is one line with the unit's name, never a traceback; the rest is done."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from headrace.shards.commit import committed

# Runs in every Python process: a worker that puts a file of shard 00001 in place kills itself instead.
KILL = """
import multiprocessing, os, signal
replace = os.replace
def replace_or_die(source, target, **options):
    if multiprocessing.parent_process() is not None and "00001" in str(target):
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target, **options)
os.replace = replace_or_die
import pathlib
pathlib.os.replace = replace_or_die
"""


@pytest.fixture
def killing(tmp_path: Path) -> dict[str, str]:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(KILL)
    paths = filter(None, (str(folder), os.environ.get("PYTHONPATH")))
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def test_import_names_the_shard_and_does_the_others(tmp_path: Path, killing: dict[str, str]) -> None:
    (tmp_path / "in").mkdir()
    for number in range(4):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "in" / f"{number}.png")
    program = [sys.executable, "-c", "from headrace.cli.app import main\nif __name__ == '__main__': main()"]
    arguments = ["import", "in", "out", "--samples-per-shard", "1", "--workers", "2", "-q"]
    done = subprocess.run(
        [*program, *arguments], cwd=tmp_path, env=killing, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(
        "headrace: 1 of 4 units killed their worker twice, the second time alone: shard 00001 (SIGKILL)"
    )
    assert "run the same command again" in line
    assert committed(str(tmp_path / "out")) == ["00000", "00002", "00003"]
    again = subprocess.run([*program, *arguments], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (again.returncode, again.stdout) == (0, "out: 4 of 4 inputs in 4 shards\n")
