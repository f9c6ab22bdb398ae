"""A small dataset of noise, and a mixture of it."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from headrace.pipeline import Augment, Batch, Mixture, Source, View
from headrace.shards.write import Sample, finish_dataset, write_shard


def _picture(number: int) -> bytes:
    noise = np.random.default_rng(number).integers(0, 256, (3, 4, 3), np.uint8)
    sink = io.BytesIO()
    Image.fromarray(noise).resize((40, 32), Image.Resampling.BICUBIC).save(sink, "JPEG")
    return sink.getvalue()


@pytest.fixture(scope="session")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> str:
    """64 samples in 4 shards, with labels and captions."""
    folder = tmp_path_factory.mktemp("pairs")
    for shard in range(4):
        numbers = range(shard * 16, shard * 16 + 16)
        samples = [
            Sample(f"{number:05d}", _picture(number), "jpg", {"label": number % 10, "caption": f"number {number}"})
            for number in numbers
        ]
        write_shard(str(folder), f"{shard:05d}", samples)
    finish_dataset(str(folder), recipe_digest="test")
    return str(folder)


@pytest.fixture(scope="session")
def mixture(dataset: str) -> Mixture:
    """The dataset over 4 lanes, in two views."""
    return Mixture(
        seed=5,
        lanes=4,
        image_size=16,
        sources=(Source(name="noise", url=dataset, chunk_samples=4, shuffle_window=32),),
        views=(View(augment=Augment(scale=(0.3, 1.0))), View(image_size=8, augment=Augment(crop="center"))),
        read_timeout_seconds=30.0,
        decode_threads=2,
        io_threads=2,
        index_cache="none",
    )


@pytest.fixture(scope="session")
def fingerprint() -> Callable[[Batch], tuple[object, ...]]:
    """`fingerprint(batch)`: everything of a batch but the waiting, whatever its pictures are made of."""

    def of(batch: Batch) -> tuple[object, ...]:
        pixels = [np.asarray(view).tobytes() for view in batch.views]
        columns = {name: list(column) for name, column in batch.columns.items()}
        return pixels, repr(columns), batch.position.tolist(), batch.key, batch.valid.tolist()

    return of
