"""Runs a script as it is, and writes down in which order it takes batches and steps; may be killed at one batch.

watched_program.py LOG KILL_AT SCRIPT ARGUMENTS: the log of each rank has a line for every batch (its positions) and
for every step of the optimizer ("step"). At batch KILL_AT (from 1; 0 = never) the process is killed.
"""

import itertools
import json
import os
import runpy
import signal
import sys

import torch

from headrace.torch.batch_form import BatchForm

log_path, kill_at, *sys.argv = sys.argv[1:]
log = open(f"{log_path}.{os.environ.get('RANK', '0')}", "a", buffering=1)  # noqa: SIM115  open to the end
numbers = itertools.count(1)
form, step = BatchForm.__call__, torch.optim.AdamW.step


def taken(self, batch):  # type: ignore[no-untyped-def]
    if next(numbers) == int(kill_at):
        os.kill(os.getpid(), signal.SIGKILL)
    log.write(json.dumps(batch.position.tolist()) + "\n")
    return form(self, batch)


def stepped(self, *args, **kwargs):  # type: ignore[no-untyped-def]
    log.write('"step"\n')
    return step(self, *args, **kwargs)


BatchForm.__call__ = taken  # type: ignore[method-assign]
torch.optim.AdamW.step = stepped  # type: ignore[method-assign]
sys.path[0] = os.path.dirname(sys.argv[0])
runpy.run_path(sys.argv[0], run_name="__main__")
