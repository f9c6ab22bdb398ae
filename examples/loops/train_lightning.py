"""Lightning over a mixture: train_lightning.py MIXTURE OUT. Run again to continue from the last checkpoint."""

import os
import sys
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from headrace.torch import StreamLoader


class Classifier(L.LightningModule):
    def __init__(self):
        super().__init__()
        layers = nn.Conv2d(3, 16, 4, 4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10)
        self.model = nn.Sequential(*layers)

    def training_step(self, batch, _):
        images, labels = batch
        return nn.functional.cross_entropy(self.model(images), labels)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


mixture, out = sys.argv[1], Path(sys.argv[2])
L.seed_everything(0)
half = (0.5, 0.5, 0.5)
loader = StreamLoader(
    mixture, global_batch=16, columns=["label"], normalise=(half, half), form="tuple", steps_per_epoch=10
)
checkpoint = ModelCheckpoint(out, every_n_train_steps=5, save_last=True)
devices = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # as torchrun says
trainer = L.Trainer(devices=devices, max_steps=20, callbacks=[checkpoint], logger=False, enable_progress_bar=False)
trainer.fit(Classifier(), loader, ckpt_path="last" if (out / "last.ckpt").exists() else None)
loader.close()
