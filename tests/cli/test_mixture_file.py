"""build --mixture: a file that a stream and a run take as it is."""

import io
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from headrace.cli.app import main
from headrace.cli.mixture_file import mixture_file
from headrace.config import load_config
from headrace.pipeline import Mixture, open_stream
from headrace.shards.write import Sample, finish_dataset, write_shard


@pytest.fixture
def write_dataset(tmp_path: Path) -> Callable[[str], str]:
    """Return a function that writes a small dataset and returns its folder."""

    def write(name: str) -> str:
        samples = []
        for number in range(20):
            sink = io.BytesIO()
            Image.fromarray(np.full((20, 20, 3), number * 12, np.uint8)).save(sink, "JPEG")
            samples.append(Sample(f"{number:03d}", sink.getvalue(), "jpg"))
        write_shard(str(tmp_path / name), "00000", samples)
        finish_dataset(str(tmp_path / name), recipe_digest="test")
        return str(tmp_path / name)

    return write


def test_a_stream_opens_the_file_from_any_folder(
    write_dataset: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_dataset("web/dataset")
    write_dataset("imagenet")
    monkeypatch.chdir(tmp_path)
    mixture_file("out/m.yaml", "web/dataset", ["imagenet=0.2"], name="my web").write()
    monkeypatch.chdir("/")
    mixture = load_config(Mixture, tmp_path / "out/m.yaml")
    assert [(source.name, source.weight) for source in mixture.sources] == [("my-web", 0.8), ("imagenet", 0.2)]
    with open_stream(mixture, global_batch=16) as stream:
        assert len(next(iter(stream)).images) == 16


def test_a_dataset_alone_has_no_weight_and_names_are_unique(write_dataset: Callable[[str], str]) -> None:
    web = write_dataset("web")
    alone = yaml.safe_load(mixture_file("m.yaml", web, [], name="web").text)
    assert alone["sources"] == [{"name": "web", "url": web}]
    text = mixture_file("m.yaml", web, ["s3://a/web=0.25", "s3://b/web/=0.25"], name="web").text
    assert [(source["name"], source["url"], source["weight"]) for source in yaml.safe_load(text)["sources"]] == [
        ("web", web, 0.5),
        ("web-2", "s3://a/web", 0.25),
        ("web-3", "s3://b/web/", 0.25),
    ]


@pytest.mark.parametrize(
    ("others", "message"),
    [
        (["imagenet"], "expected DATASET=SHARE"),
        (["imagenet=1.5"], "share over 0 and under 1"),
        (["a=0.5", "b=0.5"], "the shares sum to 1, so nothing is left"),
        (["nowhere/at/all=0.2"], "--with nowhere/at/all: there is no such dataset; index or import it first"),
    ],
)
def test_shares_that_cannot_be_are_refused(others: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        mixture_file("m.yaml", "web", others, name="web")


def test_a_file_that_says_something_else_is_refused_before_anything_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, mixture = tmp_path / "recipe.yaml", tmp_path / "m.yaml"
    recipe.write_text(
        f"job: {tmp_path}/job\nunsafe_images: 'off'\ninput: {{urls: [urls.txt]}}\nbuild: {{blur_faces: false}}\n"
    )
    mixture.write_text("mine\n")
    monkeypatch.setattr(sys, "argv", ["headrace", "build", str(recipe), "--mixture", str(mixture)])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert "the file is there and says something else" in str(stopped.value.code)
    assert not (tmp_path / "job").exists()
