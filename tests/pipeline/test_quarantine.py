"""The file of damaged samples is checked when a stream is opened, and not made before it is needed."""

import dataclasses
from pathlib import Path

import pytest

from headrace.pipeline import Mixture, open_stream


@pytest.mark.parametrize("where", ["folder", "file/damaged.jsonl", "file/new/damaged.jsonl"])
def test_a_quarantine_that_cannot_be_written_is_refused_at_once(mixture: Mixture, tmp_path: Path, where: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    changed = dataclasses.replace(mixture, quarantine=str(tmp_path / where))
    with pytest.raises(ValueError, match=f"quarantine .*{where} cannot be written"):
        open_stream(changed, global_batch=8)


def test_a_remote_quarantine_is_refused(mixture: Mixture) -> None:
    with pytest.raises(ValueError, match="quarantine must be a local file, got s3://bucket/damaged"):
        dataclasses.replace(mixture, quarantine="s3://bucket/damaged")


def test_opening_makes_no_file(mixture: Mixture, tmp_path: Path) -> None:
    changed = dataclasses.replace(mixture, quarantine=str(tmp_path / "new" / "damaged.jsonl"))
    with open_stream(changed, global_batch=8) as stream:
        next(stream)
    assert list(tmp_path.iterdir()) == []
