"""An open_clip model in a loop of (images, texts): train_open_clip.py MIXTURE OUT. Run again to continue."""

import os
import sys
from pathlib import Path

import open_clip
import torch

from headrace.torch import StreamLoader

mixture, out = sys.argv[1], Path(sys.argv[2])
out.mkdir(parents=True, exist_ok=True)
device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(0)
tokenise = open_clip.SimpleTokenizer(context_length=16)
model = open_clip.CLIP(
    embed_dim=16,
    vision_cfg={"image_size": 16, "patch_size": 8, "width": 16, "head_width": 8, "layers": 1},
    text_cfg={"context_length": 16, "vocab_size": tokenise.vocab_size, "width": 16, "heads": 2, "layers": 1},
).to(device)
loss_of, optimizer = open_clip.ClipLoss(), torch.optim.AdamW(model.parameters(), lr=1e-3)
loader = StreamLoader(
    mixture,
    global_batch=16,
    columns=["caption"],
    device=device,
    normalise=(open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD),
    map=lambda sample, _: {"text": tokenise(sample.columns["caption"])[0]},  # in the threads that decode
    form="tuple",
)
parts = {"model": model, "optimizer": optimizer, "loader": loader}
if (out / "last.pt").exists():
    for name, state in torch.load(out / "last.pt", map_location=device).items():
        parts[name].load_state_dict(state)
for step, (images, _, texts) in zip(range(loader.position // 16 + 1, 21), loader, strict=False):
    optimizer.zero_grad()
    loss_of(*model(images, texts)).backward()
    optimizer.step()
    if step % 5 == 0:
        torch.save({name: part.state_dict() for name, part in parts.items()}, out / "saving.pt")
        os.replace(out / "saving.pt", out / "last.pt")
loader.close()
