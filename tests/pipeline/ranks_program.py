"""Run by torchrun in the tests: every rank streams its lanes and writes what it saw.

Arguments: mixture file, output folder, steps, state file to begin from (or -).
"""

import hashlib
import json
import sys
from pathlib import Path

import torch.distributed as dist

from headrace.pipeline import open_stream


def main(mixture: str, out: str, steps: str, state: str) -> None:
    """Write OUT/RANK.json: position -> digest of what stands there."""
    dist.init_process_group("gloo")
    rank, world_size = dist.get_rank(), dist.get_world_size()
    seen: dict[int, str] = {}
    with open_stream(mixture, global_batch=8, rank=rank, world_size=world_size, columns=("label",)) as stream:
        if state != "-":
            stream.load_state_dict(json.loads(Path(state).read_text()))
        for _ in range(int(steps)):
            batch = next(stream)
            for item, position in enumerate(batch.position.tolist()):
                row = f"{batch.source[item]} {batch.key[item]} {batch.columns['label'][item]}"
                seen[position] = hashlib.sha256(batch.images[item].tobytes() + row.encode()).hexdigest()
            dist.barrier()
        Path(out, f"{rank}.json").write_text(json.dumps({"seen": seen, "state": stream.state_dict()}))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
