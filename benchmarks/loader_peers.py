"""The loaders that are measured, each as its documentation has it and at its best: endless batches of 224 x 224.

Every one decodes, cuts as RandomResizedCrop(224, scale=(0.08, 1)) does, resizes with antialiasing and mirrors half.
`crop` is the same decode and resize for a window that is given, so that the pixels can be checked before the clock
runs. Imports stand inside, since a loader may not be installed.
"""

import io
import itertools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from loader_data import PhotoSet
from numpy.typing import NDArray

SIDE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CORES = len(os.sched_getaffinity(0))

Batches = Iterator[Any]
"""uint8 [B, 224, 224, 3] or [B, 3, 224, 224]; or, if floats were asked for, normalised [B, 3, 224, 224]."""
Crop = Callable[[bytes, tuple[int, int, int, int]], NDArray[np.uint8]]
"""(JPEG, (top, left, height, width)) -> uint8 [224, 224, 3]."""


@dataclass(frozen=True, slots=True)
class Contestant:
    """One loader."""

    open: Callable[[PhotoSet, int, bool], Batches]
    """(photographs, workers, floats) -> endless batches."""
    crop: Crop | None
    """None: it gives no crops."""
    module: str = "headrace.pipeline"
    """What must be importable."""
    workers: tuple[int, ...] = tuple(sorted({1, CORES}))
    """Worker counts to try: the best one counts."""


def bare(photos: PhotoSet, workers: int, _floats: bool) -> Batches:
    """libjpeg-turbo alone: whole pictures decoded from memory and thrown away."""
    import simplejpeg

    payloads = itertools.cycle(_decodable(photos.payloads()))

    def decode(data: bytes) -> None:
        simplejpeg.decode_jpeg(data, colorspace="RGB")  # not kept: fresh memory for each would cost as much again

    with ThreadPoolExecutor(workers) as pool:
        while True:
            yield list(pool.map(decode, list(itertools.islice(payloads, photos.batch))))


def _decodable(payloads: list[bytes]) -> list[bytes]:
    import simplejpeg

    return [data for data in payloads if simplejpeg.decode_jpeg_header(data)[2] not in ("CMYK", "YCCK")]


def headrace(keys: dict[str, Any], photos: PhotoSet, workers: int, floats: bool) -> Batches:
    """Our stream."""
    from headrace.pipeline import Mixture, Source, open_stream

    source = Source(name="photographs", url=photos.url, chunk_samples=16, shuffle_window=512)
    # Less compressed data ahead than the default, else the whole of a short run would be spent on reading it.
    memory = {"memory_bytes": 256 << 20}
    mixture = Mixture(lanes=8, image_size=SIDE, sources=(source,), decode_threads=workers, **memory, **keys)
    with open_stream(mixture, global_batch=photos.batch) as stream:
        for batch in stream:
            yield normalised(batch.images) if floats else batch.images


def normalised(images: NDArray[np.uint8]) -> Any:
    """Return a batch as float32 [B, 3, S, S], by torch, in the consumer."""
    import torch

    mean, std = torch.tensor(MEAN)[:, None, None] * 255, torch.tensor(STD)[:, None, None] * 255
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format)
    return pixels.sub_(mean).div_(std)


def headrace_crop(keys: dict[str, Any], data: bytes, window: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Decode one window by our decoder."""
    from headrace.pipeline import Mixture, Source
    from headrace.pipeline.augment.crop import Window
    from headrace.pipeline.decode import Item, make_decoder
    from headrace.pipeline.decode.gate import admit

    sources = (Source(name="photographs", url="none"),)
    decoder = make_decoder(Mixture(**{"sources": sources, "image_size": SIDE, "decoder": "turbo", **keys}), "cpu")
    out = np.empty((1, SIDE, SIDE, 3), np.uint8)
    item = Item(data, admit(data, orientation=1, max_pixels=1 << 27), position=0, row=0)
    (error,) = decoder.decode([item], [lambda *_: Window(*window, False)], [out])
    decoder.close()
    if error is not None:
        raise error
    return out[0]


class Augment:
    """torchvision's transforms on one picture; a class, so that worker processes get it."""

    def __init__(self, *, pillow: bool, floats: bool) -> None:
        from torchvision.transforms import v2

        self.pillow = pillow
        steps: list[Any] = [v2.RandomResizedCrop(SIDE, antialias=True), v2.RandomHorizontalFlip()]
        if pillow:
            steps.append(v2.PILToTensor())
        if floats:
            import torch

            steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
        self.steps = v2.Compose(steps)

    def __call__(self, data: bytes) -> Any:
        """Return [3, 224, 224]."""
        return self.steps(open_by_pillow(data) if self.pillow else open_by_torchvision(data))


def open_by_pillow(data: bytes) -> Any:
    """Return a Pillow image."""
    from PIL import Image

    return Image.open(io.BytesIO(data)).convert("RGB")


def open_by_torchvision(data: bytes) -> Any:
    """Return a uint8 tensor [3, H, W], by torchvision's libjpeg-turbo."""
    import torch
    from torchvision.io import ImageReadMode, decode_jpeg

    return decode_jpeg(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode=ImageReadMode.RGB)


def torch_crop(opened: Callable[[bytes], Any], data: bytes, window: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Crop and resize as `Augment` does."""
    import torch
    from torchvision.transforms.v2 import functional

    image = functional.resized_crop(opened(data), *window, [SIDE, SIDE], antialias=True)
    return np.asarray(image.permute(1, 2, 0) if isinstance(image, torch.Tensor) else image)


def webdataset(pillow: bool, photos: PhotoSet, workers: int, floats: bool) -> Batches:
    """webdataset in torch's DataLoader: resampled shards, a shuffle buffer."""
    import torch
    import webdataset as wds

    augment = Augment(pillow=pillow, floats=floats)
    pipeline = (
        wds.WebDataset(list(photos.shards), resampled=True, shardshuffle=False)
        .shuffle(500, initial=100)
        .to_tuple("jpg")
        .map_tuple(augment)
        .batched(photos.batch, collation_fn=_stack)
    )
    yield from torch.utils.data.DataLoader(pipeline, batch_size=None, num_workers=workers, prefetch_factor=2)


def _stack(samples: list[tuple[Any]]) -> Any:
    import torch

    return torch.stack([sample[0] for sample in samples])


def mosaicml(photos: PhotoSet, workers: int, floats: bool) -> Batches:
    """MosaicML Streaming on its own format, local."""
    import torch
    from streaming import StreamingDataset
    from streaming.base.util import clean_stale_shared_memory

    clean_stale_shared_memory()

    class Photographs(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, at: int) -> Any:
            return augment(super().__getitem__(at)["jpeg"])

    augment = Augment(pillow=False, floats=floats)
    dataset = Photographs(local=photos.mds, shuffle=True, batch_size=photos.batch)
    loader = torch.utils.data.DataLoader(dataset, photos.batch, num_workers=workers, persistent_workers=True)
    while True:
        yield from loader


def litdata(photos: PhotoSet, workers: int, floats: bool) -> Batches:
    """LitData on its own chunks, local."""
    from litdata import StreamingDataLoader, StreamingDataset

    augment = Augment(pillow=False, floats=floats)
    dataset = StreamingDataset(photos.litdata, shuffle=True, transform=partial(_of_litdata, augment))
    loader = StreamingDataLoader(dataset, batch_size=photos.batch, num_workers=workers, persistent_workers=True)
    while True:
        yield from loader


def _of_litdata(augment: Augment, sample: dict[str, bytes], *_: object) -> Any:
    return augment(sample["jpeg"])


def spdl(photos: PhotoSet, workers: int, floats: bool) -> Batches:
    """SPDL's pipeline of threads, over webdataset's reader; torchvision decodes, as its guide advises for JPEGs."""
    import torch
    import webdataset as wds
    from spdl.pipeline import PipelineBuilder

    samples = wds.WebDataset(list(photos.shards), resampled=True, shardshuffle=False).shuffle(500, initial=100)
    augment = Augment(pillow=False, floats=floats)
    pipeline = (
        PipelineBuilder()
        .add_source(sample["jpg"] for sample in samples)
        .pipe(augment, concurrency=workers)
        .aggregate(photos.batch)
        .pipe(torch.stack)
        .add_sink(2)
        .build(num_threads=workers + 1)
    )
    with pipeline.auto_stop():
        yield from pipeline


def dali(photos: PhotoSet, workers: int, floats: bool) -> Batches:
    """DALI on the CPU: its webdataset reader, its random-crop decoder (which decodes by region)."""
    from nvidia.dali import fn, pipeline_def, types

    @pipeline_def(batch_size=photos.batch, num_threads=workers, device_id=None, seed=1)  # type: ignore[untyped-decorator]
    def build() -> Any:
        jpegs = fn.readers.webdataset(paths=list(photos.shards), ext=["jpg"], random_shuffle=True, initial_fill=500)
        images = fn.decoders.image_random_crop(jpegs, random_area=[0.08, 1.0], random_aspect_ratio=[3 / 4, 4 / 3])
        images = fn.resize(images, size=[SIDE, SIDE], antialias=True)
        mirror = fn.random.coin_flip()
        if not floats:
            return fn.flip(images, horizontal=mirror)
        mean, std = [255 * value for value in MEAN], [255 * value for value in STD]
        return fn.crop_mirror_normalize(images, mirror=mirror, mean=mean, std=std, dtype=types.FLOAT)

    pipeline = build()
    pipeline.build()
    while True:
        yield pipeline.run()[0].as_array()


def dali_crop(data: bytes, window: tuple[int, int, int, int]) -> NDArray[np.uint8]:
    """Decode one window by DALI's region decoder, resized as above."""
    from nvidia.dali import fn, pipeline_def

    top, left, height, width = window

    @pipeline_def(batch_size=1, num_threads=1, device_id=None)  # type: ignore[untyped-decorator]
    def build() -> Any:
        jpegs = fn.external_source(source=lambda: [np.frombuffer(data, np.uint8)])
        part = fn.decoders.image_slice(jpegs, start=[top, left], shape=[height, width], axis_names="HW")
        return fn.resize(part, size=[SIDE, SIDE], antialias=True)

    pipeline = build()
    pipeline.build()
    return np.asarray(pipeline.run()[0].at(0))


def ours(module: str = "headrace.pipeline", **keys: Any) -> Contestant:
    """Our stream with keys of the mixture; `module` is what it needs."""
    return Contestant(partial(headrace, keys), partial(headrace_crop, keys), module, workers=(CORES,))


CONTESTANTS = {
    "bare libjpeg-turbo": Contestant(bare, None, workers=(CORES,)),
    "headrace": ours(),
    "headrace, jpeg_scaling": ours(jpeg_scaling="on"),
    "headrace, whole JPEGs": ours(jpeg_regions=False),
    "headrace, whole JPEGs, Pillow": ours(jpeg_regions=False, resizer="pillow"),
    "headrace, dali": ours("nvidia.dali", decoder="dali"),
    "DALI, CPU": Contestant(dali, dali_crop, "nvidia.dali"),
    "webdataset, torchvision": Contestant(
        partial(webdataset, False), partial(torch_crop, open_by_torchvision), "webdataset"
    ),
    "webdataset, Pillow": Contestant(partial(webdataset, True), partial(torch_crop, open_by_pillow), "webdataset"),
    "SPDL, torchvision": Contestant(spdl, partial(torch_crop, open_by_torchvision), "spdl.pipeline"),
    "MosaicML Streaming, torchvision": Contestant(mosaicml, partial(torch_crop, open_by_torchvision), "streaming"),
    "LitData, torchvision": Contestant(litdata, partial(torch_crop, open_by_torchvision), "litdata"),
}
