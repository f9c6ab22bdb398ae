"""Augmentations beside torchvision's v2 functional, on the same windows and parameters.

    python benchmarks/augment.py --pictures imagenet-sample.tar
    python benchmarks/augment.py --device cuda

On the CPU, for every preset: the mean difference in levels (of all, and of the colours alone), and the processor time
of a view in one thread. On a device: `recolour` of the two views of MoCo v3, and torchvision picture by picture.
"""

import argparse
import tarfile
import time
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torchvision.transforms.v2 import InterpolationMode, functional

from headrace.pipeline import Mixture, Source
from headrace.pipeline.augment.colour import Colour, ColourDraw, view_colours
from headrace.pipeline.augment.colour_table import draw_table
from headrace.pipeline.augment.crop import Window
from headrace.pipeline.augment.picture import recolour_picture
from headrace.pipeline.augment.pixels import recolour
from headrace.pipeline.augment.presets import PRESETS
from headrace.pipeline.augment.views import planned_views, view_windows
from headrace.pipeline.decode.resize import RESIZERS, Span, resizer_of
from headrace.shards.images.decode import decode_rgb

SOURCES = (Source(name="none", url="none"),)
BATCH = 1024


def colours_by_torchvision(image: torch.Tensor, colour: Colour) -> torch.Tensor:
    """Do to one [C, H, W] what `colour` says."""
    for name, factor in colour.jitter:
        image = getattr(functional, f"adjust_{name}")(image, factor)
    if colour.grayscale:
        image = functional.rgb_to_grayscale(image, 3)
    if colour.blur_sigma:
        image = functional.gaussian_blur(image, [colour.blur_kernel] * 2, [colour.blur_sigma] * 2)
    return functional.solarize(image, colour.solarize_threshold) if colour.solarize_threshold < 256 else image


def crop_by_torchvision(pixels: torch.Tensor, window: Window, side: int) -> torch.Tensor:
    """Cut and resize one [C, H, W]."""
    mode = InterpolationMode.BICUBIC if window.interpolation == "bicubic" else InterpolationMode.BILINEAR
    cut = functional.resized_crop(pixels, *window[:4], [side, side], mode, antialias=True)
    return functional.horizontal_flip(cut) if window.flipped else cut


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """Return an answer and the processor milliseconds it took."""
    begun = time.process_time()
    return work(), (time.process_time() - begun) * 1e3


def pictures(path: Path, number: int) -> Iterator[np.ndarray[Any, Any]]:
    """Give the first pictures of a tar, decoded."""
    with tarfile.open(path) as archive:
        for member in islice((item for item in archive if item.isfile()), number):
            file = archive.extractfile(member)
            assert file is not None
            yield decode_rgb(file.read())


def compare(name: str, decoded: list[np.ndarray[Any, Any]]) -> str:
    """Return the row of one preset."""
    mixture = Mixture(sources=SOURCES, preset=name)  # type: ignore[arg-type]
    resize = RESIZERS[resizer_of(mixture)]()
    views = list(zip(planned_views(mixture), view_windows(mixture), view_colours(mixture), strict=True))
    apart, apart_in_colour, times = [], [0.0], np.zeros(4)
    for position, pixels in enumerate(decoded):
        for view, choose_window, choose_colour in views:
            window, side = choose_window(position, *pixels.shape[:2]), view.image_size
            cut = pixels[window.top : window.top + window.height, window.left : window.left + window.width]
            four = cv2.cvtColor(cut, cv2.COLOR_RGB2RGBA).reshape(-1)
            span = Span(four, 4 * window.width, window.height, window.width)
            square, times_ours = timed(lambda: resize(span, side, side, window.interpolation))  # noqa: B023
            ours = np.ascontiguousarray(square[:, ::-1, :3] if window.flipped else square[..., :3])
            image = torch.from_numpy(pixels).permute(2, 0, 1)
            theirs, times_theirs = timed(lambda: crop_by_torchvision(image, window, side))  # noqa: B023
            times[:2] += times_ours, times_theirs
            if choose_colour is not None:
                cropped = np.ascontiguousarray(theirs.permute(1, 2, 0).numpy())
                _, times_ours = timed(lambda: recolour_picture(ours, choose_colour(position)))  # noqa: B023
                colour = choose_colour(position)
                theirs, times_theirs = timed(lambda: colours_by_torchvision(theirs, colour))  # noqa: B023
                times[2:] += times_ours, times_theirs
                recolour_picture(cropped, colour)
                apart_in_colour.append(_levels(cropped, theirs))
            apart.append(_levels(ours, theirs))
    crop, crop_theirs, colours, colours_theirs = times / len(apart)
    return (
        f"{name:<8} {np.mean(apart):>8.3f} {np.mean(apart_in_colour):>10.5f}"
        f" {crop:>8.2f} {crop_theirs:>8.2f} {colours:>10.2f} {colours_theirs:>8.2f}"
    )


def _levels(ours: np.ndarray[Any, Any], theirs: torch.Tensor) -> float:
    return float(np.abs(ours.astype(int) - theirs.permute(1, 2, 0).numpy()).mean())


def on_device(device: torch.device, batch: int) -> None:
    """Print how fast both views of MoCo v3 are coloured."""
    images = torch.randint(0, 256, (batch, 224, 224, 3), dtype=torch.uint8, device=device)
    chosen = [choose for choose in view_colours(Mixture(sources=SOURCES, preset="moco_v3")) if choose is not None]
    for number, choose in enumerate(chosen):
        begun = time.perf_counter()
        colours = draw_table(choose, np.arange(batch))
        drawn = (time.perf_counter() - begun) * 1e3
        took = _wall(device, lambda colours=colours: recolour(images, colours))  # type: ignore[misc]
        print(f"view {number}: {batch / took:,.0f} images/s ({took * 1e3:.1f} ms for {batch}, drawn in {drawn:.1f} ms)")
    took = _wall(device, lambda: _one_by_one(images[:64].permute(0, 3, 1, 2), chosen[0]))
    print(f"torchvision, picture by picture, view 0: {64 / took:,.0f} images/s")


def _one_by_one(images: torch.Tensor, choose: ColourDraw) -> torch.Tensor:
    return torch.stack([colours_by_torchvision(image, choose(at)) for at, image in enumerate(images)])


def _wall(device: torch.device, work: Callable[[], Any], times: int = 3) -> float:
    seconds = []
    for _ in range(1 + times):
        begun = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds.append(time.perf_counter() - begun)
    return min(seconds[1:])


def main() -> None:
    """Print the table, or the rates of a device."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, help="a tar of pictures")
    parser.add_argument("--number", type=int, default=40)
    parser.add_argument("--device", default="")
    parser.add_argument("--batch", type=int, default=BATCH)
    arguments = parser.parse_args()
    if not arguments.device and not arguments.pictures:
        parser.error("give --pictures, --device or both")
    if arguments.device:
        on_device(torch.device(arguments.device), arguments.batch)
    if arguments.pictures:
        torch.set_num_threads(1)
        cv2.setNumThreads(1)
        decoded = list(pictures(arguments.pictures, arguments.number))
        print("mean difference in levels, and CPU ms a view: ours, torchvision's")
        print(f"{'preset':<8} {'all':>8} {'colours':>10} {'crop':>8} {'':>8} {'colours':>10}")
        for name in PRESETS:
            print(compare(name, decoded))


if __name__ == "__main__":
    main()
