"""`headrace probe` answers a mistake with one line; what it computes is tested with training."""

from collections.abc import Callable
from pathlib import Path

import pytest

Run = Callable[..., tuple[int, str]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "neither a run folder with checkpoints, nor a checkpoint, nor a model.safetensors"),
        (("--lrs", "0.1,fast"), "--lrs '0.1,fast': expected numbers"),
        (("--lrs", "0.1,-1"), "learning rates must be above 0"),
        (("--lrs", "0.1,inf"), "learning rates must be above 0 and finite"),
        (("--epochs", "0"), "epochs and images_per_batch must be at least 1"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_one(
    run: Run, tmp_path: Path, options: tuple[str, ...], message: str
) -> None:
    code, text = run("probe", tmp_path, "--train", "a", "--test", "b", *options)
    assert code == 1
    assert text.startswith("headrace: ")
    assert message in text
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_says_what_is_missing(run: Run, tmp_path: Path) -> None:
    code, text = run("probe", tmp_path / "nothing", "--train", "a", "--test", "b", "--dry-run")
    assert code == 1
    assert "neither a run folder with checkpoints" in text
