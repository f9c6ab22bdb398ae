"""Training steps fed by a stream: how long the device waits for data.

AIM-0.6B as it is trained, and a stand-in for MoCo v3's ViT-S: two views of 224 pixels of each of 1,024 images, forward
and backward through one encoder, and a contrastive loss between the views. It has no momentum encoder and no
predictor, so its step is shorter than MoCo's and asks for data faster.
"""

import io
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
from torch import Tensor, nn
from torch.nn import functional

from headrace.pipeline import Batch, Mixture, Source, View, open_stream
from headrace.shards.imports.run import ImportConfig, import_images, open_source
from headrace.torch import DeviceBatches
from headrace.train.execution import choose_execution
from headrace.train.models.vit import Vit, VitConfig
from headrace.train.objectives.aim import Aim, AimConfig
from headrace.train.objectives.build import build_objective
from headrace.train.optim.adamw import AdamWConfig
from headrace.train.parallel.precision import autocast, uses_bf16
from headrace.train.pixels import IMAGENET_MEAN, IMAGENET_STD, Normalise

Step = Callable[[Batch], None]
NUM_PICTURES, COPIES = 150, 12
WARM_SECONDS, ALONE_STEPS, STREAM_SECONDS = 3.0, 4, 2.0
TEMPERATURE = 0.2


@dataclass(frozen=True, slots=True)
class Fed:
    """One row: what computes, and what decodes for it."""

    name: str
    batch: int
    views: int
    build: Callable[[torch.device, bool], Step]
    decoder: str = "auto"


def measure_data(device: torch.device, photos: str | None, *, until: float, batch: int) -> Iterator[dict[str, Any]]:
    """Yield what each model waited; the time that is left is shared among them."""
    tiny = device.type == "cpu"
    aim = ("AIM-tiny", batch or 16, 1, aim_step) if tiny else ("AIM-0.6B", batch or 128, 1, aim_step)
    vit = ("ViT-S, two views, stand-in loss", batch or (8 if tiny else 1024), 2, views_step)
    runs = [Fed(*aim), Fed(*vit), *([] if tiny else [Fed(*aim, decoder="turbo")])]
    with tempfile.TemporaryDirectory() as folder:
        url = make_dataset(photos, Path(folder))
        for number, fed in enumerate(runs):
            left = (until - time.monotonic()) / (len(runs) - number)
            head = {"model": fed.name, "batch": fed.batch}
            if left < 8:
                yield head | {"decoder": fed.decoder, "note": f"unmeasured: {max(0.0, left):.0f} s were left"}
                continue
            try:
                yield head | measure(fed, url, device, tiny=tiny, seconds=left)
            except (RuntimeError, ValueError, OSError) as error:
                yield head | {"decoder": fed.decoder, "note": f"failed: {type(error).__name__}: {str(error)[:200]}"}
            if device.type == "cuda":
                torch.cuda.empty_cache()


def measure(fed: Fed, url: str, device: torch.device, *, tiny: bool, seconds: float) -> dict[str, Any]:
    """Return the times of steps on one batch, on the stream, and of the stream without steps."""
    begun, step = time.perf_counter(), fed.build(device, tiny)
    views = (View(count=fed.views),) if fed.views > 1 else ()
    mixture = Mixture(
        image_size=224, lanes=1, sources=(Source(name="photographs", url=url),), views=views, decoder=fed.decoder
    )
    with DeviceBatches(open_stream(mixture, global_batch=fed.batch, device=str(device)), device) as batches:
        batch = next(batches)
        step(batch)
        alone = timed(lambda: step(batch), ALONE_STEPS)
        warm = time.perf_counter() + WARM_SECONDS
        while time.perf_counter() < warm:
            step(next(batches))
        started, waited, steps = time.perf_counter(), 0.0, 0
        last = max(started + 2.0, begun + seconds - STREAM_SECONDS)
        while steps < 3 or time.perf_counter() < last:
            batch = next(batches)
            waited += batch.waited_seconds
            step(batch)
            steps += 1
        wall = time.perf_counter() - started
        bound = batches.stats().bound_by
        begun, count = time.perf_counter(), 0
        while time.perf_counter() < begun + STREAM_SECONDS:
            next(batches)
            count += fed.batch
        rate = count / (time.perf_counter() - begun)
    return {
        "decoder": batches.stream.decoder,
        "images_per_second": round(fed.batch * steps / wall, 1),
        "data_wait_percent": round(100 * waited / wall, 2),
        "step_ms": round(1e3 * wall / steps, 1),
        "step_ms_without_stream": round(1e3 * alone, 1),
        "stream_alone_images_per_second": round(rate, 1),
        "data_bound_by": bound,
        "cores": len(os.sched_getaffinity(0)),
    }


def timed(call: Callable[[], None], times: int) -> float:
    """Return the mean seconds of a call."""
    call()
    begun = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - begun) / times


def aim_step(device: torch.device, tiny: bool) -> Step:
    """Return a step of AIM."""
    config = AimConfig(kind="aim", model="tiny" if tiny else "0.6B")
    with device:
        objective = build_objective(config, image_size=224, seed=0)
    assert isinstance(objective, Aim)
    objective.run_as(choose_execution(device, bf16=uses_bf16("auto", device)))
    return stepping(objective, lambda batch: objective(batch)[0] / objective.num_terms(batch), device)


class TwoViews(nn.Module):
    """A ViT-S of MoCo v3's size, the mean of its tokens, and a contrastive loss between two views: a stand-in."""

    def __init__(self, *, depth: int) -> None:
        super().__init__()
        self.normalise = Normalise(IMAGENET_MEAN, IMAGENET_STD)
        self.encoder = Vit(VitConfig(image_size=224, patch=16, width=384, depth=depth, heads=12))
        self.head = nn.Linear(384, 256)

    def forward(self, batch: Batch) -> Tensor:
        """Return the mean cross-entropy of finding each image's other view."""
        one, other = (self.embed(view) for view in batch.views)
        logits = (one @ other.T).float() / TEMPERATURE
        target = torch.arange(len(logits), device=logits.device)
        return (functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)) / 2

    def embed(self, images: Any) -> Tensor:
        """Return unit vectors."""
        return functional.normalize(self.head(self.encoder(self.normalise(images)).mean(dim=1)).float(), dim=1)


def views_step(device: torch.device, tiny: bool) -> Step:
    """Return a step of the two views."""
    with device:
        module = TwoViews(depth=2 if tiny else 12)
    # 90 GB of activations without it, 40 with it.
    small = device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory < 120e9
    execution = choose_execution(device, bf16=uses_bf16("auto", device), recompute="selective" if small else "none")
    execution.apply(module)
    return stepping(module, module, device)


def stepping(
    module: nn.Module,
    loss_of: Callable[[Batch], Tensor],
    device: torch.device,
    optimizer: torch.optim.Optimizer | None = None,
) -> Step:
    """Return a function that does one optimizer step; it waits for the device once, where the loss is read.

    Without an optimizer it is the AdamW of runs.
    """
    optimizer = AdamWConfig().build(module) if optimizer is None else optimizer

    def step(batch: Batch) -> None:
        with autocast("auto", device):
            loss = loss_of(batch)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        torch.stack([loss.detach(), norm]).tolist()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def make_dataset(photos: str | None, folder: Path) -> str:
    """Return the URL of a dataset of the photographs, or of pictures of 500 x 375 pixels that are made here."""
    tar = photos or str(folder / "pictures.tar")
    if not photos:
        rng = np.random.default_rng(0)
        made = [simplejpeg.encode_jpeg(picture(rng), quality=85) for _ in range(NUM_PICTURES)]
        with tarfile.open(tar, "w") as archive:
            for number in range(NUM_PICTURES * COPIES):
                data = made[number % NUM_PICTURES]
                member = tarfile.TarInfo(f"{number:05d}.jpg")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    config = ImportConfig(samples_per_shard=500)
    import_images(open_source(tar, config), str(folder / "dataset"), config)
    return str(folder / "dataset")


def picture(rng: np.random.Generator) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Return soft shapes under a little grain: about as many bytes as a photograph."""
    coarse = rng.integers(0, 256, (12, 16, 3)).astype(np.float32)
    rows, columns = np.linspace(0, 10.99, 375), np.linspace(0, 14.99, 500)
    r, c = rows.astype(int), columns.astype(int)
    fr, fc = (rows - r)[:, None, None], (columns - c)[None, :, None]
    top = coarse[r][:, c] * (1 - fc) + coarse[r][:, c + 1] * fc
    bottom = coarse[r + 1][:, c] * (1 - fc) + coarse[r + 1][:, c + 1] * fc
    soft = top * (1 - fr) + bottom * fr
    return np.ascontiguousarray(np.clip(soft + rng.normal(0, 12, soft.shape), 0, 255).astype(np.uint8))
