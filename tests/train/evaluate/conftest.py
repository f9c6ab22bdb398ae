"""A tiny trained run that evaluators read."""

from pathlib import Path

import pytest

from headrace.train.config import load_run
from headrace.train.loop import train


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory, pictures: str) -> Path:
    """The folder of a run of two steps: images of 16 pixels, 16 tokens of width 16, two blocks."""
    folder = tmp_path_factory.mktemp("trained")
    text = f"""
        {{out: {folder}/run, seed: 3, steps: 2, global_batch: 16, device: cpu,
        mixture: {{lanes: 4, image_size: 16, sources: [{{name: pictures, url: "{pictures}", shuffle_window: 32}}]}},
        objective: {{kind: aim, model: tiny, patch: 4, width: 16, depth: 2, heads: 2, head_width: 16, head_depth: 1}}}}
    """
    path = folder / "run.yaml"
    path.write_text(text)
    return train(load_run(path)).out
