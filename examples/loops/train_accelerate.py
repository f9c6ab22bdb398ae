"""accelerate over a mixture: accelerate launch train_accelerate.py MIXTURE OUT. Run again to continue.

Without a GPU: torchrun --nproc_per_node=2, as accelerate launch starts several processes there by MPI only.
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import nn

from headrace.torch import StreamLoader

mixture, out = sys.argv[1], Path(sys.argv[2])
accelerator = Accelerator(cpu=not torch.cuda.is_available())
torch.manual_seed(0)
model = nn.Sequential(nn.Conv2d(3, 16, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
half = (0.5, 0.5, 0.5)
loader = StreamLoader(
    mixture,
    global_batch=16,
    columns=["label"],
    device=accelerator.device,
    normalise=(half, half),
    form="tuple",
)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)  # the loader comes back as it is
accelerator.register_for_checkpointing(loader)
if checkpoints := sorted(out.glob("step-*")):
    accelerator.load_state(checkpoints[-1])
for step, (images, labels) in zip(range(loader.position // 16 + 1, 21), loader, strict=False):
    optimizer.zero_grad()
    accelerator.backward(nn.functional.cross_entropy(model(images), labels))
    optimizer.step()
    if step % 5 == 0:
        accelerator.save_state(out / "saving")
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            (out / "saving").rename(out / f"step-{step:06d}")
loader.close()
accelerator.end_training()
