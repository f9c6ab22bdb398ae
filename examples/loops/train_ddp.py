"""A plain DistributedDataParallel loop: torchrun --nproc_per_node=2 train_ddp.py MIXTURE OUT. Run again to continue."""

import os
import sys
from pathlib import Path

import torch
from torch import distributed, nn

from headrace.torch import StreamLoader

mixture, out = sys.argv[1], Path(sys.argv[2])
out.mkdir(parents=True, exist_ok=True)
cuda, local_rank = torch.cuda.is_available(), int(os.environ["LOCAL_RANK"])
distributed.init_process_group("nccl" if cuda else "gloo")
device = torch.device("cuda", local_rank) if cuda else torch.device("cpu")
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
ddp = nn.parallel.DistributedDataParallel(model.to(device))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
half = (0.5, 0.5, 0.5)
loader = StreamLoader(mixture, global_batch=16, columns=["label"], device=device, normalise=(half, half), form="tuple")
parts = {"model": model, "optimizer": optimizer, "loader": loader}
if (out / "last.pt").exists():
    for name, state in torch.load(out / "last.pt", map_location=device).items():
        parts[name].load_state_dict(state)
for step, (images, labels) in zip(range(loader.position // 16 + 1, 21), loader, strict=False):
    optimizer.zero_grad()
    nn.functional.cross_entropy(ddp(images), labels).backward()
    optimizer.step()
    if step % 5 == 0 and distributed.get_rank() == 0:
        torch.save({name: part.state_dict() for name, part in parts.items()}, out / "saving.pt")
        os.replace(out / "saving.pt", out / "last.pt")
loader.close()
distributed.destroy_process_group()
