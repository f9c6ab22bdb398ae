"""Presets are the papers' values, written out once, and their pictures are torchvision's on the same parameters."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from headrace.config import build_config, config_to_dict, load_config
from headrace.pipeline import Augment, Mixture, Source, View, open_stream
from headrace.pipeline.augment.colour import view_colours
from headrace.pipeline.augment.crop import Window
from headrace.pipeline.augment.describe import describe_views
from headrace.pipeline.augment.presets import PRESETS, preset_views
from headrace.pipeline.augment.views import planned_views, view_windows

BASE: dict[str, Any] = {"sources": [{"name": "a", "url": "b"}]}
SOURCES = (Source(name="a", url="b"),)


def of_preset(name: str, **more: Any) -> Mixture:
    return build_config(Mixture, {**BASE, "preset": name, **more})


@pytest.mark.parametrize(
    ("name", "sides", "scales", "flip", "interpolation"),
    [
        ("aim", [224], [(0.4, 1.0)], True, "bicubic"),
        ("moco_v3", [224] * 2, [(0.08, 1.0)] * 2, True, "bilinear"),
        ("byol", [224] * 2, [(0.08, 1.0)] * 2, True, "bicubic"),
        ("simclr", [224] * 2, [(0.08, 1.0)] * 2, True, "bicubic"),
        ("swav", [224] * 2 + [96] * 6, [(0.14, 1.0)] * 2 + [(0.05, 0.14)] * 6, True, "bilinear"),
        ("clip", [224], [(0.9, 1.0)], False, "bicubic"),
        ("simmim", [224], [(0.67, 1.0)], True, "bilinear"),
        ("eval", [224], [(0.08, 1.0)], False, "bilinear"),
    ],
)
def test_presets_have_the_papers_crops(
    name: str, sides: list[int], scales: list[tuple[float, float]], flip: bool, interpolation: str
) -> None:
    views = planned_views(of_preset(name))
    assert [view.image_size for view in views] == sides
    assert [view.augment.scale for view in views] == scales
    assert {view.augment.flip for view in views} == {flip}
    assert {view.augment.interpolation for view in views} == {interpolation}
    assert {view.augment.ratio for view in views} == {(3 / 4, 4 / 3)}
    assert (views[0].augment.crop, views[0].augment.center_fraction) == (
        ("center", 0.875) if name == "eval" else ("random", 1.0)
    )


def test_presets_have_the_papers_colours() -> None:
    for name in ("moco_v3", "byol"):
        first, second = (view.augment for view in planned_views(of_preset(name)))
        for augment in (first, second):
            assert (augment.colour_jitter, augment.colour_jitter_probability) == ((0.4, 0.4, 0.2, 0.1), 0.8)
            assert augment.grayscale_probability == 0.2
        assert (first.blur_probability, second.blur_probability) == (1.0, 0.1)
        assert (first.solarize_probability, second.solarize_probability) == (0.0, 0.2)
    for name in ("simclr", "swav"):
        for view in planned_views(of_preset(name)):
            assert (view.augment.colour_jitter, view.augment.colour_jitter_probability) == ((0.8, 0.8, 0.8, 0.2), 0.8)
            assert (view.augment.grayscale_probability, view.augment.blur_probability) == (0.2, 0.5)
            assert view.augment.solarize_probability == 0
    for name in ("aim", "clip", "simmim", "eval"):
        assert view_colours(of_preset(name)) == (None,)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_written_out_where_a_mixture_is_made(name: str) -> None:
    mixture = of_preset(name)
    assert mixture.preset == ""
    assert mixture == Mixture(sources=SOURCES, preset=name)  # type: ignore[arg-type]
    assert build_config(Mixture, config_to_dict(mixture)) == mixture
    flat = tuple((view.image_size or 224, view.augment) for view in preset_views(name) for _ in range(view.count))
    assert flat == tuple((view.image_size, view.augment) for view in planned_views(mixture))


def test_keys_of_the_file_change_every_view_of_the_preset() -> None:
    views = planned_views(of_preset("swav", augment={"flip": False, "blur_probability": 0}))
    expected = planned_views(Mixture(sources=SOURCES, views=preset_views("swav", flip=False, blur_probability=0.0)))
    assert views == expected
    assert [view.augment.scale for view in views] == [(0.14, 1.0)] * 2 + [(0.05, 0.14)] * 6
    (aim,) = planned_views(of_preset("aim", augment={"scale": [0.08, 1.0]}))
    assert aim.augment == Augment(interpolation="bicubic")  # also back to the default of the key
    assert [view.image_size for view in planned_views(of_preset("swav", image_size=112))] == [112] * 2 + [48] * 6
    assert [view.image_size for view in preset_views("swav", image_size=1)] == [0, 1]  # 0 is be the mixture's


def test_overrides_and_runs_take_presets(tmp_path: Path) -> None:
    from headrace.train.config import RunConfig

    path = tmp_path / "mixture.yaml"
    path.write_text("sources: [{name: a, url: b}]\n")
    overridden = load_config(Mixture, path, ["preset=moco_v3", "augment.flip=false"])
    assert overridden == Mixture(sources=SOURCES, views=preset_views("moco_v3", flip=False), augment=overridden.augment)
    rest = {
        "out": "x",
        "seed": 0,
        "steps": 1,
        "global_batch": 16,
        "objective": {"kind": "supervised", "num_classes": 2},
    }
    run = {**rest, "mixture": {**BASE, "preset": "aim"}}
    assert build_config(RunConfig, run).mixture == Mixture(sources=SOURCES, preset="aim")
    unset = {**rest, "mixture": {**BASE, "preset": None}}
    assert build_config(RunConfig, unset).mixture == Mixture(sources=SOURCES)
    with pytest.raises(ValueError, match=r"mixture\.preset: swav gives the views: leave `views` out"):
        build_config(RunConfig, {**run, "mixture": {**BASE, "preset": "swav", "views": [{"count": 2}]}})


def test_views_of_ones_own_may_stand_beside_a_preset_of_one() -> None:
    mixture = of_preset("aim", views=[{}, {"image_size": 96}])
    assert [(view.image_size, view.augment.scale) for view in planned_views(mixture)] == [
        (224, (0.4, 1.0)),
        (96, (0.4, 1.0)),
    ]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"preset": "moco"}, r"preset: input should be '', 'aim', 'moco_v3', .* got 'moco'"),
        ({"preset": "swav", "views": [{"count": 2}]}, "preset: swav gives the views: leave `views` out, or the preset"),
        (
            {"preset": "aim", "augment": {"flop": 1}},
            r"unknown key 'augment.flop'; did you mean 'flip'\? known keys here: crop",
        ),
        ({"preset": "aim", "augment": 3}, "augment"),
        (
            {"preset": "swav", "augment": {"flop": 1}},
            r"^augment: unknown key 'flop'; did you mean 'flip'\? known keys here: crop, [a-z_, ]*$",
        ),
        ({"preset": "swav", "augment": {"blur_sigma": [2, 1]}}, r"^augment: blur_sigma must be a range [^;]*$"),
        ({"preset": 3}, "preset"),
        ({"preset": "swav", "image_size": -5}, "image_size must be 1..4096, got -5"),
    ],
)
def test_presets_that_cannot_be_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build_config(Mixture, {**BASE, **given})


def test_in_python_a_preset_stands_alone() -> None:
    with pytest.raises(ValueError, match=r"take views=preset_views\('moco_v3', flip=False\)"):
        Mixture(sources=SOURCES, preset="moco_v3", augment=Augment(flip=False))
    with pytest.raises(ValueError, match="preset swav gives augment and views"):
        Mixture(sources=SOURCES, preset="swav", views=(View(),))
    with pytest.raises(ValueError, match=r"preset: unknown 'moco'; did you mean 'moco_v3'\? known: aim, moco_v3"):
        preset_views("moco")


def test_a_preset_is_told_in_words() -> None:
    assert describe_views(Mixture(sources=SOURCES, views=(View(count=2),))) == []
    assert describe_views(of_preset("swav")) == [
        "views 0-1: 224 pixels, random crop of 0.14-1 bilinear, flip, colour jitter 0.8 0.8 0.8 0.2 in 80%, "
        "greyscale in 20%, blur of 0.1-2 in 50%",
        "views 2-7: 96 pixels, random crop of 0.05-0.14 bilinear, flip, colour jitter 0.8 0.8 0.8 0.2 in 80%, "
        "greyscale in 20%, blur of 0.1-2 in 50%",
    ]
    assert describe_views(of_preset("moco_v3"))[1].startswith(
        "view 1: 224 pixels, random crop of 0.08-1 bilinear, flip"
    )
    assert describe_views(of_preset("moco_v3"))[1].endswith("blur of 0.1-2 in 10%, solarised from 128 in 20%")
    assert describe_views(of_preset("eval")) == ["view 0: 224 pixels, centre crop of 0.875 bilinear"]
    assert describe_views(of_preset("eval", augment={"crop": "pad"})) == ["view 0: 224 pixels, padded with 0 bilinear"]


def cut_by_torchvision(pixels: torch.Tensor, window: Window, side: int) -> torch.Tensor:
    from torchvision.transforms.v2 import InterpolationMode, functional

    mode = InterpolationMode.BICUBIC if window.interpolation == "bicubic" else InterpolationMode.BILINEAR
    cut = functional.resized_crop(pixels, *window[:4], [side, side], mode, antialias=True)
    return (functional.horizontal_flip(cut) if window.flipped else cut).permute(1, 2, 0)


@pytest.mark.parametrize("name", PRESETS)
def test_pictures_of_a_preset_are_torchvisions_on_the_same_parameters(
    name: str, datasets: tuple[str, str], by_torchvision: Any
) -> None:
    """The stream's pictures against crop, flip and colours by torchvision, from the same decoded pixels."""
    import io
    import tarfile

    from headrace.shards.images.decode import decode_rgb

    stored = {}
    for tar in sorted((Path(datasets[0]) / "shards").glob("*.tar")):
        with tarfile.open(tar) as archive:
            for member in archive:
                file = archive.extractfile(member)
                if file is not None and member.name.endswith(".jpg"):
                    stored[Path(member.name).stem] = decode_rgb(io.BytesIO(file.read()).getvalue())
    mixture = dataclasses.replace(
        Mixture(sources=(Source(name="a", url=datasets[0]),), image_size=32, preset=name, lanes=1),  # type: ignore[arg-type]
        index_cache="none",
    )
    windows, colours, views = view_windows(mixture), view_colours(mixture), planned_views(mixture)
    apart = []
    with open_stream(mixture, global_batch=24) as stream:
        batch = next(stream)
    for row, (position, key) in enumerate(zip(batch.position.tolist(), batch.key, strict=True)):
        pixels = torch.from_numpy(stored[key]).permute(2, 0, 1)
        for number, view in enumerate(views):
            window = windows[number](position, *pixels.shape[1:])
            expected = cut_by_torchvision(pixels, window, view.image_size)
            choose = colours[number]
            if choose is not None:
                expected = by_torchvision(expected.contiguous(), choose(position))
            apart.append(np.abs(batch.views[number][row].astype(int) - expected.numpy()).mean())
    assert np.mean(apart) < 0.2  # levels, nearly all of them the resizer's; it is 0.05 to 0.09 here
