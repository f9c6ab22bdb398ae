"""Images per second of our stream beside webdataset + DataLoader, and beside a bare libjpeg-turbo loop.

Same shards, same cores, same pictures out: RandomResizedCrop 224 (antialiased) and flip, uint8 batches. Contestants
run in turn, several rounds, and the best round of each counts: on a shared machine compare ratios, not numbers. Ours
runs with one thread a core; webdataset with one worker and with two, of which the better suits it.

    python benchmarks/loader.py imagenet-sample.tar [--images 2400] [--rounds 3]
"""

import argparse
import itertools
import os
import random
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import simplejpeg
import torch
import webdataset
from numpy.typing import NDArray
from PIL import Image

from headrace.pipeline import Augment, Mixture, Source, open_stream
from headrace.pipeline.augment.crop import choose_window
from headrace.shards.dataset import Dataset, open_dataset
from headrace.shards.imports.run import ImportConfig, import_images, open_source
from headrace.shards.payloads import read_payloads

SIDE = 224
BATCH = 64
SAMPLES_PER_SHARD = 75

Contestant = Callable[[int], float]


def main() -> None:
    """Run all contestants in turn and print the best round of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="tar or folder of JPEGs")
    parser.add_argument("--images", type=int, default=2400, help="images a round")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        url = str(Path(folder, "dataset"))
        config = ImportConfig(samples_per_shard=SAMPLES_PER_SHARD)
        import_images(open_source(arguments.source, config), url, config)
        dataset = open_dataset(url)
        contestants: dict[str, Contestant] = {
            "bare libjpeg-turbo loop": partial(bare_decode, load_all(dataset)),
            "headrace": partial(ours, url),
            "webdataset, 1 worker": partial(theirs, dataset, 1),
            "webdataset, 2 workers": partial(theirs, dataset, 2),
        }
        best = dict.fromkeys(contestants, float("inf"))
        for _ in range(arguments.rounds):
            for name, run in contestants.items():
                best[name] = min(best[name], run(arguments.images))
    show(best, arguments.images)


def show(best: dict[str, float], num_images: int) -> None:
    """Print images per second, and each against ours."""
    print(f"{len(os.sched_getaffinity(0))} cores, {num_images} images, RandomResizedCrop {SIDE} + flip, uint8")
    print(f"{'':<26} {'images/s':>9} {'headrace is':>12}")
    for name, seconds in best.items():
        print(f"{name:<26} {num_images / seconds:>9.0f} {seconds / best['headrace']:>11.2f}x")


def load_all(dataset: Dataset) -> list[bytes]:
    """Return every image's bytes."""
    payloads: list[bytes] = []
    for shard in range(len(dataset.shards)):
        table = dataset.index(shard)
        spans = zip(table.column("offset").to_pylist(), table.column("size").to_pylist(), strict=True)
        payloads += read_payloads(dataset.tar_url(shard), list(spans))
    return payloads


def bare_decode(payloads: list[bytes], num_images: int) -> float:
    """Decode from memory and throw away, one thread a core: the ceiling of any loader that decodes whole images."""
    chosen = list(itertools.islice(itertools.cycle(payloads), num_images))
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        begun = time.perf_counter()
        for _ in pool.map(partial(simplejpeg.decode_jpeg, colorspace="RGB"), chosen, chunksize=16):
            pass
        return time.perf_counter() - begun


def ours(url: str, num_images: int) -> float:
    """Our stream, one decoding thread a core."""
    source = Source(name="images", url=url, chunk_samples=16, shuffle_window=512)
    mixture = Mixture(lanes=8, image_size=SIDE, sources=(source,))
    with open_stream(mixture, global_batch=BATCH) as stream:
        return timed(((batch.images for batch in stream)), num_images)


def theirs(dataset: Dataset, workers: int, num_images: int) -> float:
    """webdataset's resampled shards, shuffle buffer, Pillow, torch's DataLoader."""
    urls = [dataset.tar_url(number) for number in range(len(dataset.shards))]
    pipeline = (
        webdataset.WebDataset(urls, resampled=True, shardshuffle=False)
        .shuffle(500, initial=100)
        .map(augment_by_pillow)
        .batched(BATCH, collation_fn=torch.stack)
    )
    loader = torch.utils.data.DataLoader(pipeline, batch_size=None, num_workers=workers, prefetch_factor=2)
    return timed(iter(loader), num_images)


def augment_by_pillow(sample: dict[str, Any]) -> torch.Tensor:
    """Decode, crop, resize and flip one image as torchvision does on PIL images."""
    import io

    data = next(sample[name] for name in ("jpg", "jpeg") if name in sample)
    image = Image.open(io.BytesIO(data)).convert("RGB")
    window = choose_window(Augment(), [random.random() for _ in range(41)], image.height, image.width)
    box = (window.left, window.top, window.left + window.width, window.top + window.height)
    image = image.crop(box).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    if window.flipped:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return torch.from_numpy(np.array(image))


def timed(batches: Iterator[NDArray[np.uint8]] | Iterator[torch.Tensor], num_images: int) -> float:
    """Seconds for `num_images`, after the first batch: starting is not counted, for nobody."""
    next(batches)
    begun, seen = time.perf_counter(), 0
    while seen < num_images:
        seen += len(next(batches))
    return (time.perf_counter() - begun) * num_images / seen


if __name__ == "__main__":
    main()
