"""Run by torchrun in the tests, and killed there: every rank streams its lanes and writes what it saw, step by step.

Arguments: mixture file, output folder, last position, and where to stand until the kill, should it be late. Begins from
OUT/state.json if there is one.
"""

import hashlib
import json
import sys
import time
from pathlib import Path

import torch.distributed as dist

from headrace.pipeline import open_stream


def main(mixture: str, out: str, last: str, hold_at: str) -> None:
    """Append to OUT/seen-RANK.jsonl a line a step; rank 0 then writes the state, when all have done the step."""
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    folder = Path(out)
    state = folder / "state.json"
    with (
        open_stream(mixture, global_batch=8, rank=rank, world_size=world_size) as stream,
        (folder / f"seen-{world_size}-{rank}.jsonl").open("a") as file,
    ):
        if state.exists():
            stream.load_state_dict(json.loads(state.read_text()))
        dist.barrier()
        while stream.position < int(last):
            batch = next(stream)
            rows = [
                [position, int(batch.source[item]), batch.key[item], hashlib.sha256(batch.images[item]).hexdigest()]
                for item, position in enumerate(batch.position.tolist())
            ]
            file.write(json.dumps(rows) + "\n")
            file.flush()
            dist.barrier()
            if rank == 0:
                (folder / "state.tmp").write_text(json.dumps(stream.state_dict()))
                (folder / "state.tmp").rename(state)
            time.sleep(0.02 if stream.position < int(hold_at) or hold_at == last else 1000)  # there is time to kill it
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
