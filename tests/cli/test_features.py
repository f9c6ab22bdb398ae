"""`headrace features` answers a mistake with one line; what it writes is tested with training."""

from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "neither a run folder with checkpoints, nor a checkpoint, nor a model.safetensors"),
        (("--dtype", "int8"), "dtype: unknown 'int8'; known: float16, float32"),
        (("--part", "3/2"), "--part '3/2': expected I/N"),
        (("--part", "one"), "--part 'one': expected I/N"),
        (("--samples", "-1"), "samples at least 0"),
        (("--dry-run",), "neither a run folder with checkpoints"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_one(
    run: Run, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    (tmp_path / "run").mkdir()
    code, text = run("features", tmp_path / "run", "data", "--out", tmp_path / "f.parquet", *options)
    assert code == 1
    assert text.startswith("headrace: ")
    assert message in text
    assert not list(tmp_path.glob("f*"))
