"""The loader of most training scripts: WebDataset tars, PIL and torchvision in the workers of a DataLoader.

It gives MoCo v3's two views as that paper's script makes them. Views travel between processes as uint8, a quarter of
the bytes of the floats that many scripts send, so the peer is not slowed by what it need not do.
"""

import math
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headrace.pipeline import Batch

SIDE, WORKER_BATCH = 224, 128


def webdataset_batches(tars: list[str], batch: int, device: torch.device) -> Iterator[Batch]:
    """Yield endless batches of two views [batch, 224, 224, 3] on `device`, decoded by one worker a core."""
    import webdataset

    workers = len(os.sched_getaffinity(0))
    data = webdataset.WebDataset(tars, resampled=True, shardshuffle=False, nodesplitter=None, empty_check=False)
    rows = data.shuffle(500).decode("pil").to_tuple("jpg;jpeg;png").map(TwoViews())
    # Small batches, put together here: else each of 16 workers would make 1,024 images before the first one comes.
    part = math.gcd(batch, WORKER_BATCH)
    loader = webdataset.WebLoader(rows, batch_size=part, num_workers=workers, pin_memory=device.type == "cuda")
    parts = iter(loader)
    while True:
        taken = [[view.to(device, non_blocking=True) for view in next(parts)] for _ in range(batch // part)]
        yield _as_batch(*(torch.cat(views) for views in zip(*taken, strict=True)))


class TwoViews:
    """MoCo v3's pair of views of one picture, each uint8 [224, 224, 3]."""

    def __init__(self) -> None:
        self.both = (_view(blur=1.0, solarize=0.0), _view(blur=0.1, solarize=0.2))

    def __call__(self, row: tuple[Any]) -> tuple[Tensor, ...]:
        """Return both views of a picture."""
        picture = row[0].convert("RGB")
        return tuple(torch.from_numpy(np.array(view(picture))) for view in self.both)


def _view(*, blur: float, solarize: float) -> Any:
    from torchvision import transforms

    return transforms.Compose(
        [
            transforms.RandomResizedCrop(SIDE, scale=(0.08, 1.0)),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([_blurred], p=blur),
            transforms.RandomSolarize(128, p=solarize),
            transforms.RandomHorizontalFlip(),
        ]
    )


def _blurred(picture: Any) -> Any:
    from PIL import ImageFilter

    return picture.filter(ImageFilter.GaussianBlur(radius=float(np.random.default_rng().uniform(0.1, 2.0))))


def _as_batch(first: Tensor, second: Tensor) -> Batch:
    rows = len(first)
    return Batch(
        images=first,
        other_views=(second,),
        columns={},
        position=np.arange(rows, dtype=np.int64),
        source=np.zeros(rows, np.int32),
        key=[""] * rows,
        valid=np.ones(rows, np.bool_),
    )
