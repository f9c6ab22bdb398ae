"""`skipped.jsonl`: each step that a run skipped, on disk before the next one begins.

A run that is killed behind a skipped step does that step again, from a checkpoint before it. The cause may be gone by
then (a GPU that computed wrongly once). So the journal decides: the step is skipped again without computing it, as long
as config and samples are the same, and the weights are those of a run that nobody killed.
"""

import contextlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from headrace.atomic import is_full_disk
from headrace.train.runs.tensors import numbered
from headrace.train.steady.bad_steps import Skipped, skipped_from_dict, skipped_to_dict

FILE = "skipped.jsonl"


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One line."""

    skipped: Skipped
    config: str
    """Digest of the config that decides all steps up to this one."""


def append_entry(path: Path, entry: Entry, samples: Sequence[Any]) -> None:
    """Write one line with the step's samples, and wait until it is on disk. Raises OSError naming the file."""
    line = {**skipped_to_dict(entry.skipped), "config": entry.config, "samples": samples}
    try:
        with path.open("a", encoding="ascii") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        hint = "; make room and run the same command again" if is_full_disk(error) else ""
        raise numbered(OSError(f"{path}: cannot be written: {error.strerror}{hint}"), error.errno) from error


def read_journal(text: str) -> dict[tuple[int, str], Skipped]:
    """Return the skipped steps of a journal by step and config; a line that a kill left unfinished is not one."""
    found = {}
    for line in text.splitlines():
        with contextlib.suppress(ValueError, KeyError, TypeError, OverflowError, RecursionError):
            data = json.loads(line)
            one = skipped_from_dict(data)
            found[one.step, str(data["config"])] = one
    return found
