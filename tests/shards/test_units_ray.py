"""Promises of the Ray executor: a cluster that it starts is gone afterwards, and import and index run on it."""

import signal
from pathlib import Path

import pytest
from PIL import Image

from headrace.shards.dataset import open_dataset
from headrace.shards.foreign.index import IndexConfig, index_folder
from headrace.shards.imports.run import ImportConfig, import_images, open_source
from headrace.shards.progress import Progress
from headrace.shards.units import EngineConfig
from headrace.shards.verify import verify_dataset

pytestmark = [
    pytest.mark.full,
    pytest.mark.filterwarnings("ignore::FutureWarning:ray", "ignore::ResourceWarning", "ignore::DeprecationWarning"),
]
RAY = EngineConfig(executor="ray", workers=2)


def test_import_index_and_verify_run_on_a_cluster_that_is_stopped_again(tmp_path: Path) -> None:
    import ray

    (tmp_path / "in").mkdir()
    for number in range(5):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / "in" / f"{number}.png")
    handler = signal.getsignal(signal.SIGTERM)
    out, config = str(tmp_path / "out"), ImportConfig(samples_per_shard=2)
    seen: list[Progress] = []
    summary = import_images(open_source(str(tmp_path / "in"), config), out, config, engine=RAY, on_progress=seen.append)
    assert (summary.num_samples, summary.num_shards) == (5, 3)
    assert (seen[-1].done, seen[-1].counts["images"]) == (3, 5)
    assert not ray.is_initialized()
    assert signal.getsignal(signal.SIGTERM) == handler
    assert verify_dataset(out, engine=RAY) == []
    tars = sorted(path.name for path in (tmp_path / "out" / "shards").glob("*.tar"))
    (tmp_path / "tars").mkdir()
    for name in tars:
        (tmp_path / "out" / "shards" / name).rename(tmp_path / "tars" / name)
    assert index_folder(str(tmp_path / "tars"), tars, IndexConfig(), engine=RAY).num_samples == 5
    assert open_dataset(str(tmp_path / "tars")).num_samples == 5
