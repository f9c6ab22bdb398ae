"""RandAugment and random erasing beside timm's: processor time of a picture, in one thread, taken in turns.

    python benchmarks/rand_augment.py --pictures imagenet-sample.tar

RandAugment is `rand-m9-mstd0.5-inc1`, bicubic, draws included. timm works on a Pillow image, which a loader makes of an
array or a file and makes an array of again: its time is given with and without these two. timm erases a normalised
tensor, we the bytes.
"""

import argparse
import random
import tarfile
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing as TimmErasing

from headrace.pipeline import RandAugment, RandomErasing
from headrace.pipeline.augment.erasing import ErasingDraw, erase_picture
from headrace.pipeline.augment.rand_augment import RandDraw
from headrace.pipeline.augment.rand_picture import rand_picture
from headrace.shards.images.decode import decode_rgb

Pixels = np.ndarray[Any, Any]
FILL = (124, 116, 104)


def squares(path: Path, number: int, side: int) -> list[Pixels]:
    """Return the first pictures of a tar as squares."""
    with tarfile.open(path) as archive:
        files = [archive.extractfile(member) for member in islice((one for one in archive if one.isfile()), number)]
        decoded = [decode_rgb(file.read()) for file in files if file is not None]
    return [cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA) for pixels in decoded]


def in_turns(works: dict[str, Callable[[int], Any]], number: int, rounds: int) -> dict[str, float]:
    """Return the processor milliseconds a picture of each work, called with the number of the picture."""
    seconds = dict.fromkeys(works, 0.0)
    for at in range(number * rounds):
        for name in works if at % 2 else reversed(works):
            begun = time.process_time()
            works[name](at)
            seconds[name] += time.process_time() - begun
    return {name: 1e3 * spent / (number * rounds) for name, spent in seconds.items()}


def rand_works(pictures: list[Pixels]) -> dict[str, Callable[[int], Any]]:
    """Return RandAugment as we and as timm do it."""
    draw = RandDraw(1, RandAugment(), "bicubic")
    theirs = rand_augment_transform("rand-m9-mstd0.5-inc1", {"img_mean": FILL, "interpolation": Image.BICUBIC})
    arrays, images = [one.copy() for one in pictures], [Image.fromarray(one) for one in pictures]
    draws = iter(range(1 << 40))

    def again(work: Callable[[], Any]) -> Any:
        while True:  # at 10 and over Pillow refuses what timm asks of Posterize
            try:
                return work()
            except ValueError:
                continue

    def ours(at: int) -> None:
        array = arrays[at % len(arrays)]
        np.copyto(array, pictures[at % len(pictures)])  # it is done in place
        rand_picture(array, draw(next(draws)), interpolation="bicubic", fill=FILL)

    return {
        "ours": ours,
        "timm": lambda at: again(lambda: theirs(images[at % len(images)])),
        "timm, of and to arrays": lambda at: again(
            lambda: np.asarray(theirs(Image.fromarray(pictures[at % len(pictures)])))
        ),
    }


def erasing_works(pictures: list[Pixels], probability: float) -> dict[str, Callable[[int], Any]]:
    """Return random erasing as we and as timm do it."""
    side, config = pictures[0].shape[0], RandomErasing(probability=probability)
    draw, theirs = ErasingDraw((1,), config, side), TimmErasing(probability, mode="pixel", device="cpu")
    array, tensor = pictures[0].copy(), torch.zeros(3, side, side)
    return {"ours": lambda at: erase_picture(array, draw(at), config), "timm": lambda _: theirs(tensor)}


def main() -> None:
    """Print a line for each work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True, help="a tar of pictures")
    parser.add_argument("--number", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=25)
    parser.add_argument("--side", type=int, default=224)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002  timm draws from it
    pictures = squares(arguments.pictures, arguments.number, arguments.side)
    for title, works in (
        ("RandAugment", rand_works(pictures)),
        ("random erasing in 25 %", erasing_works(pictures, 0.25)),
        ("random erasing in all", erasing_works(pictures, 1.0)),
    ):
        in_turns(works, len(pictures), 1)
        times = in_turns(works, len(pictures), arguments.rounds)
        told = ", ".join(f"{name} {spent:.4f} ({spent / times['ours']:.2f})" for name, spent in times.items())
        print(f"{title}, ms a picture of {arguments.side} (as a share of ours): {told}", flush=True)


if __name__ == "__main__":
    main()
