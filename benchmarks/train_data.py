"""Training steps fed by a stream: how long the device waits for data.

AIM-0.6B, and MoCo v3's ViT-S with frozen patch projection: two views of 224 pixels of each of 1,024 images, where data
can stall. MoCo is fed a second time by what most scripts have, WebDataset and a DataLoader with a worker a core.
"""

import contextlib
import io
import itertools
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
from train_feed_peer import webdataset_batches

from headrace.pipeline import Batch, Mixture, Source, open_stream
from headrace.shards.imports.run import ImportConfig, import_images, open_source
from headrace.torch import DeviceBatches
from headrace.train.execution import choose_execution
from headrace.train.models.backbones import BackboneConfig
from headrace.train.objectives.aim import AimConfig
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.contrastive.moco import MocoConfig
from headrace.train.objectives.objective import Objective, ObjectiveConfig
from headrace.train.optim.adamw import AdamWConfig
from headrace.train.parallel.precision import autocast, uses_bf16
from headrace.train.peak import peak_flops

Step = Callable[[Batch], None]
NUM_PICTURES, COPIES = 150, 12
WARM_SECONDS, ALONE_STEPS, FEED_SECONDS = 3.0, 4, 2.0
STEPS = 100_000


@dataclass(frozen=True, slots=True)
class Fed:
    """One row: what computes, and what decodes for it."""

    name: str
    batch: int
    objective: ObjectiveConfig
    preset: str
    decoder: str = "auto"
    """Of our stream; `webdataset` = the peer's loader."""


def runs(device: torch.device, batch: int) -> list[Fed]:
    """Return the rows; those that are worth most come first."""
    tiny = device.type == "cpu"
    aim = AimConfig(kind="aim", model="tiny" if tiny else "0.6B")
    small = BackboneConfig(model="tiny", patch=32, depth=2, patch_projection="frozen")
    whole = BackboneConfig(model="S", patch=16, patch_projection="frozen")
    moco = (
        MocoConfig(kind="moco", backbone=small, hidden_width=256) if tiny else MocoConfig(kind="moco", backbone=whole)
    )
    pairs = (f"MoCo v3 ViT-{moco.backbone.model}", batch or (8 if tiny else 1024), moco, "moco_v3")
    return [
        Fed(*pairs),
        Fed(*pairs, decoder="webdataset"),
        Fed(f"AIM-{aim.model}", batch or (16 if tiny else 128), aim, "aim"),
        *([] if tiny else [Fed(*pairs, decoder="turbo")]),
    ]


def measure_data(device: torch.device, photos: str | None, *, until: float, batch: int) -> Iterator[dict[str, Any]]:
    """Yield what each model waited; the time that is left is shared among them."""
    rows = runs(device, batch)
    with tempfile.TemporaryDirectory() as folder:
        url = make_dataset(photos, Path(folder))
        for number, fed in enumerate(rows):
            left = (until - time.monotonic()) / (len(rows) - number)
            head = {"model": fed.name, "batch": fed.batch, "decoder": fed.decoder}
            if left < 8:
                yield head | {"note": f"unmeasured: {max(0.0, left):.0f} s were left"}
                continue
            try:
                yield head | measure(fed, url, device, seconds=left)
            except (RuntimeError, ValueError, OSError) as error:
                yield head | {"note": f"failed: {type(error).__name__}: {str(error)[:200]}"}
            if device.type == "cuda":
                torch.cuda.empty_cache()


def measure(fed: Fed, url: str, device: torch.device, *, seconds: float) -> dict[str, Any]:
    """Return the times of steps on one batch, on the loader's batches, and of the loader without steps."""
    begun = time.perf_counter()
    step, objective = objective_step(fed.objective, device)
    with contextlib.closing(open_feed(fed, url, device)) as feed:
        batch = next(feed)
        step(batch)
        alone = timed(lambda: step(batch), ALONE_STEPS)
        warm = time.perf_counter() + WARM_SECONDS
        while time.perf_counter() < warm:
            step(next(feed))
        started, waited, steps = time.perf_counter(), 0.0, 0
        last = max(started + 2.0, begun + seconds - FEED_SECONDS)
        while steps < 3 or time.perf_counter() < last:
            asked = time.perf_counter()
            batch = next(feed)
            waited += max(batch.waited_seconds, time.perf_counter() - asked)  # ours knows of the device's waits too
            step(batch)
            steps += 1
        wall = time.perf_counter() - started
        begun, count = time.perf_counter(), 0
        while count < 2 * fed.batch or time.perf_counter() < begun + FEED_SECONDS:
            next(feed)
            count += fed.batch
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        rate = count / (time.perf_counter() - begun)
    peak = peak_flops(device)
    needed = objective.needed_flops(batch)
    return {
        "images_per_second": round(fed.batch * steps / wall, 1),
        "data_wait_percent": round(100 * waited / wall, 2),
        "step_ms": round(1e3 * wall / steps, 1),
        "step_ms_without_loader": round(1e3 * alone, 1),
        "mfu_percent": round(100 * needed / peak * steps / wall, 1) if peak else None,
        "mfu_percent_without_loader": round(100 * needed / peak / alone, 1) if peak else None,
        "loader_alone_images_per_second": round(rate, 1),
        "cores": len(os.sched_getaffinity(0)),
    }


def open_feed(fed: Fed, url: str, device: torch.device) -> Iterator[Batch]:
    """Yield batches on the device, from our stream or from the peer's loader."""
    if fed.decoder == "webdataset":
        yield from webdataset_batches(sorted(map(str, Path(url).glob("shards/*.tar"))), fed.batch, device)
    mixture = Mixture(
        image_size=224,
        lanes=1,
        sources=(Source(name="photographs", url=url),),
        preset=fed.preset,
        decoder=fed.decoder,
    )
    with DeviceBatches(open_stream(mixture, global_batch=fed.batch, device=str(device)), device) as batches:
        yield from batches


def timed(call: Callable[[], None], times: int) -> float:
    """Return the mean seconds of a call."""
    call()
    begun = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - begun) / times


def objective_step(config: ObjectiveConfig, device: torch.device) -> tuple[Step, Objective]:
    """Return a step of the objective, compiled and in bf16 as a run computes it, and the objective."""
    with device:
        objective = build_objective(config, image_size=224, seed=0)
    objective.run_as(choose_execution(device, bf16=uses_bf16("auto", device)))
    move = stepping(objective, lambda batch: objective(batch)[0] / objective.num_terms(batch), device)
    number = itertools.count()

    def step(batch: Batch) -> None:
        objective.before_step(next(number), STEPS)
        move(batch)
        objective.after_step()

    return step, objective


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
