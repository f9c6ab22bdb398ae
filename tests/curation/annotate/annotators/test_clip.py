"""A tiny open_clip model with random weights: our scores are open_clip's own."""

import json
import os
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from headrace.curation.annotate.annotator import digest
from headrace.curation.annotate.annotators.clip import ClipScore, ClipScoreConfig, center_strip
from headrace.curation.annotate.annotators.clip_files import clip_files
from headrace.curation.annotate.annotators.clip_model import read_model_config

open_clip = pytest.importorskip("open_clip")
torch = pytest.importorskip("torch")

MODEL_CFG = {
    "embed_dim": 32,
    "vision_cfg": {"image_size": 32, "layers": 2, "width": 32, "patch_size": 8, "head_width": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2},
}
PREPROCESS_CFG = {"mean": [0.5, 0.4, 0.3], "std": [0.3, 0.3, 0.3], "resize_mode": "shortest"}
CAPTIONS = ["a red square", "a picture of a dog on a long road that goes on " * 5, "", None]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A model with its files: the plain config, open_clip's folder config, three kinds of weights."""
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(5)
    network = open_clip.CLIP(**MODEL_CFG).eval()
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    (folder / "tiny.json").write_text(json.dumps(MODEL_CFG))
    (folder / "folder.json").write_text(json.dumps({"model_cfg": MODEL_CFG, "preprocess_cfg": PREPROCESS_CFG}))
    save_file(weights, folder / "tiny.safetensors")
    torch.save(weights, folder / "tiny.pt")
    torch.save({"state_dict": {f"module.{name}": value for name, value in weights.items()}}, folder / "epoch.pth")
    return SimpleNamespace(folder=folder, network=network)


def clip(tiny, model="tiny.json", checkpoint="tiny.safetensors", **settings):
    return ClipScore(
        ClipScoreConfig(
            model=str(tiny.folder / model), checkpoint=str(tiny.folder / checkpoint), device="cpu", **settings
        )
    )


@pytest.fixture
def images(scene):
    return [scene(1), scene(2, 40, 200), scene(3, 33, 32), scene(4, 500, 90)]


def direct(network, preprocess_cfg, images, captions):
    """Score by open_clip's own functions, one pair at a time."""
    from open_clip.transform import PreprocessCfg, image_transform_v2

    transform = image_transform_v2(PreprocessCfg(**{"size": 32, **preprocess_cfg}), is_train=False)
    tokenize = open_clip.SimpleTokenizer(context_length=16)
    with torch.inference_mode():
        for pixels, caption in zip(images, captions, strict=True):
            image = network.encode_image(transform(Image.fromarray(pixels))[None])[0]
            text = network.encode_text(tokenize([caption or ""]))[0]
            yield image / image.norm(), float(torch.cosine_similarity(image, text, dim=0))


@pytest.mark.parametrize(("model", "preprocess"), [("tiny.json", {}), ("folder.json", PREPROCESS_CFG)])
@pytest.mark.parametrize("checkpoint", ["tiny.safetensors", "tiny.pt", "epoch.pth"])
def test_scores_and_embeddings_are_those_of_open_clip(model, preprocess, checkpoint, tiny, images, batch_of):
    columns = clip(tiny, model, checkpoint).annotate(batch_of(images, CAPTIONS))
    expected = list(direct(tiny.network, preprocess, images, CAPTIONS))
    for (embedding, score), found, vector in zip(
        expected[:3], columns["clip_score"], columns["clip_embedding"], strict=False
    ):
        assert found == pytest.approx(score, abs=1e-5)
        assert vector.dtype == np.float16
        np.testing.assert_allclose(vector, embedding, atol=1e-3)
    assert columns["clip_score"][3] is None
    np.testing.assert_allclose(columns["clip_embedding"][3], expected[3][0], atol=1e-3)


def test_an_image_that_does_not_decode_has_neither(tiny, images, batch_of):
    columns = clip(tiny).annotate(batch_of([None, images[0]], ["a", "b"]))
    assert columns["clip_score"][0] is None
    assert columns["clip_embedding"][0] is None
    assert columns["clip_score"][1] is not None


def test_values_do_not_depend_on_neighbours_or_threads(tiny, images, batch_of):
    annotator = clip(tiny)
    together = annotator.annotate(batch_of(images * 5, CAPTIONS * 5))
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        for row in range(len(images)):
            alone = annotator.annotate(batch_of([images[row]], [CAPTIONS[row]]))
            for again in range(row, 20, 4):
                assert alone["clip_score"][0] == together["clip_score"][again]
                assert alone["clip_embedding"][0].tobytes() == together["clip_embedding"][again].tobytes()
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_a_very_long_image_is_cut_to_its_middle_before_it_is_resized(scene, tiny, batch_of):
    long = np.concatenate([scene(seed, 400, 9) for seed in range(8)], axis=1)
    assert center_strip(long).shape == (9, 144, 3)
    assert center_strip(long.transpose(1, 0, 2)).shape == (144, 9, 3)
    found = clip(tiny).annotate(batch_of([long], ["x"]))["clip_embedding"][0]
    ((expected, _),) = direct(tiny.network, {}, [long], ["x"])
    np.testing.assert_allclose(found, expected, atol=2e-2)


def test_the_digest_is_of_content_not_of_places(tiny, tmp_path):
    moved = tmp_path / "other.safetensors"
    moved.write_bytes((tiny.folder / "tiny.safetensors").read_bytes())
    one = clip(tiny)
    assert digest(one) == digest(
        ClipScore(ClipScoreConfig(model=one.config.model, checkpoint=str(moved), device="auto"))
    )
    moved.write_bytes(moved.read_bytes()[:-4] + b"\0\0\0\1")
    os.utime(moved, (1, 1))
    assert digest(one) != digest(ClipScore(ClipScoreConfig(model=one.config.model, checkpoint=str(moved))))
    assert digest(one) != digest(clip(tiny, model="folder.json"))
    assert digest(one) != digest(clip(tiny, images_per_batch=32))


class Payload:
    """A pickle that would make a folder."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (self.path,))


def test_a_checkpoint_that_runs_code_is_refused_and_does_not_run(tiny, tmp_path, images, batch_of):
    torch.save({"state_dict": Payload(str(tmp_path / "made"))}, tmp_path / "evil.pt")
    with pytest.raises(ValueError, match=r"evil\.pt does not load .* more than tensors"):
        clip(tiny, checkpoint=tmp_path / "evil.pt").annotate(batch_of(images, CAPTIONS))
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.safetensors", b"\xff" * 64), ("b.pt", b"rubbish"), ("c.pt", b""), ("d.bin", b"\x80\x02N.")],
)
def test_rubbish_weights_are_refused_by_name(name, content, tiny, tmp_path, images, batch_of):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} does not load"):
        clip(tiny, checkpoint=tmp_path / name).annotate(batch_of(images, CAPTIONS))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("ViT-B-99", "knows no model"),
        ("hf-hub:org/model", "nothing is downloaded"),
        ("ViT-B-16-SigLIP", "Hugging Face hub"),
        ("ViT-B-32", "does not load as model"),
    ],
)
def test_a_model_that_cannot_be_is_refused(model, message, tiny, images, batch_of):
    annotator = ClipScore(ClipScoreConfig(model=model, checkpoint=str(tiny.folder / "tiny.pt"), device="cpu"))
    with pytest.raises(ValueError, match=message):
        annotator.annotate(batch_of(images, CAPTIONS))


@pytest.mark.parametrize("text", ["[]", "{", '{"embed_dim": 3}', '{"model_cfg": 3}'])
def test_a_config_that_is_none_is_refused_by_name(text, tiny, tmp_path, images, batch_of):
    (tmp_path / "odd.json").write_text(text)
    with pytest.raises(ValueError, match=r"odd\.json"):
        clip(tiny, model=tmp_path / "odd.json").annotate(batch_of(images, CAPTIONS))


def test_a_config_that_would_run_code_of_its_tokenizer_is_refused(tmp_path):
    text_cfg = {**MODEL_CFG["text_cfg"], "tokenizer_kwargs": {"trust_remote_code": True}}
    (tmp_path / "odd.json").write_text(json.dumps(MODEL_CFG | {"text_cfg": text_cfg}))
    with pytest.raises(ValueError, match=r"odd\.json: tokenizer_kwargs may hold clean,.*trust_remote_code"):
        read_model_config(clip_files(str(tmp_path / "odd.json"), "weights.pt"))


def parts(tiny, folder, **config):
    """Write the folder that open_clip and `headrace train` write."""
    folder.mkdir(parents=True)
    text = json.dumps({"model_cfg": MODEL_CFG | config, "preprocess_cfg": PREPROCESS_CFG})
    (folder / "open_clip_config.json").write_text(text)
    (folder / "open_clip_model.safetensors").symlink_to(tiny.folder / "tiny.safetensors")
    return folder


def test_a_folder_is_its_files(tiny, tmp_path, images, batch_of, monkeypatch):
    """A run of `headrace train`, local-dir:, and what lies in the hub's cache: the same rows under the same digest."""
    expected = clip(tiny, "folder.json")
    folder = parts(tiny, tmp_path / "run" / "open_clip")
    (folder / "open_clip_config.json").write_bytes((tiny.folder / "folder.json").read_bytes())
    cache = tmp_path / "hub" / "models--some--clip"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("abc")
    (cache / "snapshots").mkdir()
    (cache / "snapshots" / "abc").symlink_to(folder)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    for model in (str(tmp_path / "run"), f"local-dir:{folder}", "hf-hub:some/clip"):
        made = ClipScore(ClipScoreConfig(model=model, device="cpu"))
        assert digest(made) == digest(expected)
        assert made.annotate(batch_of(images, CAPTIONS))["clip_score"] == pytest.approx(
            expected.annotate(batch_of(images, CAPTIONS))["clip_score"], nan_ok=True
        )


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("ViT-B-32", "needs a `checkpoint`"),
        ("local-dir:nowhere", "there is no such folder"),
        ("hf-hub:org/model", "hf download org/model --local-dir FOLDER"),
        ("{empty}", "holds none of open_clip_config.json"),
    ],
)
def test_a_model_that_is_not_there_is_refused_with_what_to_do(model, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        digest(ClipScore(ClipScoreConfig(model=model.format(empty=tmp_path))))


def test_a_tokenizer_of_the_hub_is_read_from_the_folder(tiny, tmp_path, images, batch_of):
    """As SigLIP and its kin have it: text_cfg names a repository, the folder holds tokenizer.json."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"[UNK]": 0, "[PAD]": 1, "a": 2, "red": 3, "square": 4}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = parts(tiny, tmp_path / "model", text_cfg={**MODEL_CFG["text_cfg"], "hf_tokenizer_name": "some/where"})
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]")
    made.save_pretrained(folder)
    annotator = ClipScore(ClipScoreConfig(model=str(folder), device="cpu"))
    assert "tokenizer.json" in annotator.files()
    scores = annotator.annotate(batch_of(images[:2], ["a red square", "square red a"]))["clip_score"]
    assert scores[0] != scores[1]


@pytest.mark.cuda
def test_scores_on_a_gpu_are_those_of_the_cpu(tiny, images, batch_of):
    """`auto` takes the GPU; bits may differ, values do not."""
    config = clip(tiny, "folder.json").config
    found = {
        device: ClipScore(replace(config, device=device)).annotate(batch_of(images, CAPTIONS))
        for device in ("cpu", "auto")
    }
    assert found["auto"]["clip_score"][:3] == pytest.approx(found["cpu"]["clip_score"][:3], abs=2e-3)
    for ours, theirs in zip(found["auto"]["clip_embedding"], found["cpu"]["clip_embedding"], strict=True):
        np.testing.assert_allclose(ours, theirs, atol=5e-3)
