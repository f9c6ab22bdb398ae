"""Forks processes that have everything imported: importing it takes three seconds of a core, and a job is many of them.

A line of JSON on stdin starts one, or asks after one; a line on stdout answers. Nothing here but imports has run when a
process is forked: there are no threads that it would lack.
"""

import json
import os
import sys

import torch.distributed.tensor  # noqa: F401  what a run imports only where it needs it
from torch.nn.parallel import DistributedDataParallel  # noqa: F401

import headrace.cli.train
import headrace.train.loop  # noqa: F401


def _answer(answer: object) -> None:
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


for line in sys.stdin:
    asked = json.loads(line)
    if "wait" in asked:
        pid, status = os.waitpid(asked["wait"], os.WNOHANG)
        _answer(os.waitstatus_to_exitcode(status) if pid else None)
        continue
    pid = os.fork()
    if pid:
        _answer(pid)
        continue
    null = os.open(os.devnull, os.O_RDWR)
    said = os.open(asked["stderr"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number, opened in enumerate((null, null, said)):
        os.dup2(opened, number)
    os.environ.update(asked["environment"])
    sys.argv = ["headrace", *asked["arguments"]]
    exec(asked["program"], {"__name__": "__main__"})
    break
