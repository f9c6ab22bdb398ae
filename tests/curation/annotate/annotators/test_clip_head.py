"""Heads made here: the numbers of a slow forward pass; other shapes are refused."""

import json
from itertools import pairwise

import numpy as np
import pytest

from headrace.curation.annotate.annotator import digest
from headrace.curation.annotate.annotators import clip as clip_module
from headrace.curation.annotate.annotators.aesthetic import Aesthetic, AestheticConfig
from headrace.curation.annotate.annotators.clip import ClipScore, ClipScoreConfig
from headrace.curation.annotate.annotators.clip_head import AESTHETIC, UNSAFE, load_head
from headrace.curation.annotate.annotators.unsafe_image import UnsafeImage, UnsafeImageConfig

torch = pytest.importorskip("torch")
nn = torch.nn
WIDTH = 32


def aesthetic_network(width=WIDTH):
    sizes = (width, 1024, 128, 64, 16, 1)
    layers = [nn.Linear(into, out) for into, out in pairwise(sizes)]
    dropped = [layers[0], nn.Dropout(0.2), layers[1], nn.Dropout(0.2), layers[2], nn.Dropout(0.1), *layers[3:]]
    return nn.ModuleDict({"layers": nn.Sequential(*dropped)})


def unsafe_network(width=WIDTH):
    network = nn.Module()
    network.norm = nn.BatchNorm1d(width, eps=0)
    sizes = (width, 64, 512, 256, 1)
    for number, (into, out) in enumerate(pairwise(sizes)):
        setattr(network, f"linear_{number + 1}", nn.Linear(into, out))
    network.norm.running_mean.uniform_(-0.5, 0.5)
    network.norm.running_var.uniform_(0.5, 2)
    return network


def slow_aesthetic(network, feature):
    for layer in network["layers"]:
        if isinstance(layer, nn.Linear):
            weight, bias = layer.weight.detach().numpy(), layer.bias.detach().numpy()
            feature = np.array([sum(w * x for w, x in zip(row, feature, strict=True)) for row in weight]) + bias
    return feature[0]


def slow_unsafe(network, feature):
    norm = {name: value.numpy() for name, value in network.norm.state_dict().items()}
    value = (feature - norm["running_mean"]) / np.sqrt(norm["running_var"]) * norm["weight"] + norm["bias"]
    for number in range(1, 5):
        layer = getattr(network, f"linear_{number}")
        value = layer.weight.detach().numpy() @ value + layer.bias.detach().numpy()
        value = np.maximum(value, 0) if number < 4 else value
    return 1 / (1 + np.exp(-value[0]))


def save(network, path):
    from safetensors.torch import save_file

    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    if path.suffix == ".safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path)
    return str(path)


@pytest.mark.parametrize("name", ["head.pth", "head.safetensors"])
@pytest.mark.parametrize(
    ("make", "slow", "shape"),
    [(aesthetic_network, slow_aesthetic, AESTHETIC), (unsafe_network, slow_unsafe, UNSAFE)],
)
def test_a_head_gives_the_numbers_of_a_slow_forward_pass(name, make, slow, shape, tmp_path):
    torch.manual_seed(3)
    network = make()
    head = load_head(save(network, tmp_path / name), shape, "a.key")
    for seed in range(3):
        feature = np.random.default_rng(seed).normal(size=WIDTH).astype(np.float32)
        assert head(feature / np.linalg.norm(feature)) == pytest.approx(
            slow(network, feature / np.linalg.norm(feature)), abs=1e-5
        )


def test_the_one_layer_of_the_first_aesthetic_head_is_known(tmp_path):
    network = nn.Linear(WIDTH, 1)
    feature = np.full(WIDTH, 0.1, np.float32)
    expected = float(network(torch.from_numpy(feature)).detach()[0])
    assert load_head(save(network, tmp_path / "one.pth"), AESTHETIC, "a.key")(feature) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (lambda: unsafe_network(), AESTHETIC),
        (lambda: aesthetic_network(), UNSAFE),
        (lambda: nn.Sequential(nn.Linear(WIDTH, 64), nn.Linear(64, 1)), AESTHETIC),
        (lambda: nn.Sequential(nn.Linear(WIDTH, 1, bias=False)), AESTHETIC),
        (lambda: nn.ModuleList([aesthetic_network(), nn.Linear(WIDTH, 3)]), AESTHETIC),
    ],
)
def test_a_head_of_another_shape_is_refused_by_name(network, shape, tmp_path):
    with pytest.raises(ValueError, match=r"odd\.pth: expected .*Linear D-.*; got .* \[.*; check a\.key"):
        load_head(save(network(), tmp_path / "odd.pth"), shape, "a.key")


def test_weights_that_are_no_numbers_and_rubbish_are_refused(tmp_path):
    network = nn.Linear(WIDTH, 1)
    with torch.no_grad():
        network.weight[0, 3] = float("nan")
    with pytest.raises(ValueError, match="finite weights"):
        load_head(save(network, tmp_path / "nan.pth"), AESTHETIC, "a.key")
    for name, data in (("rubbish.pth", b"\x80\x02N."), ("rubbish.safetensors", b"\xff" * 40), ("empty.pth", b"")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(ValueError, match=f"head .*{name}"):
            load_head(str(tmp_path / name), AESTHETIC, "a.key")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A CLIP of random weights, as a run's folder."""
    open_clip = pytest.importorskip("open_clip")
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("clip")
    config = {
        "embed_dim": WIDTH,
        "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "patch_size": 8, "head_width": 16},
        "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    }
    (folder / "model_config.json").write_text(json.dumps({"model_cfg": config}))
    network = open_clip.CLIP(**config)
    weights = {name: value.contiguous() for name, value in network.state_dict().items()}
    save_file(weights, folder / "model.safetensors")
    return ClipScoreConfig(model=str(folder), device="cpu", images_per_batch=4)


def test_scores_are_of_the_normalized_feature_and_the_model_runs_once_for_all(
    model, tmp_path, batch_of, scene, monkeypatch
):
    torch.manual_seed(4)
    one, two = aesthetic_network(), unsafe_network()
    aesthetic = Aesthetic(AestheticConfig(head=save(one, tmp_path / "a.pth"), clip=model))
    unsafe = UnsafeImage(UnsafeImageConfig(model=save(two, tmp_path / "u.pth"), clip=model))
    passes = []
    through = clip_module.image_features
    monkeypatch.setattr(clip_module, "image_features", lambda *args: passes.append(1) or through(*args))
    batch = batch_of([*(scene(seed) for seed in range(3)), None], ["a", "b", None, "d"])
    scores = aesthetic.annotate(batch)["aesthetic_score"], unsafe.annotate(batch)["unsafe_image_score"]
    embeddings = ClipScore(model).annotate(batch)["clip_embedding"]
    assert len(passes) == 1
    for row in range(3):
        feature = embeddings[row].astype(np.float32)
        assert scores[0][row] == pytest.approx(slow_aesthetic(one, feature), abs=2e-3)
        assert scores[1][row] == pytest.approx(slow_unsafe(two, feature), abs=2e-3)
    assert (scores[0][3], scores[1][3]) == (None, None)
    before = digest(aesthetic)
    save(aesthetic_network(), tmp_path / "a.pth")
    assert digest(aesthetic) != before


def test_a_head_of_another_model_is_refused(model, tmp_path, batch_of, scene):
    head = save(aesthetic_network(width=48), tmp_path / "wide.pth")
    with pytest.raises(ValueError, match=r"wide\.pth takes features of 48 numbers, the CLIP model gives 32"):
        Aesthetic(AestheticConfig(head=head, clip=model)).annotate(batch_of([scene(1)]))


def test_an_onnx_head_is_run_and_must_give_a_probability(model, tmp_path, batch_of, scene):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    from onnx import TensorProto, helper, numpy_helper

    def write(name, value):
        graph = helper.make_graph(
            [
                helper.make_node("MatMul", ["feature", "zero"], ["none"]),
                helper.make_node("Add", ["none", "one"], ["out"]),
            ],
            "constant",
            [helper.make_tensor_value_info("feature", TensorProto.FLOAT, ["N", WIDTH])],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 1])],
            [
                numpy_helper.from_array(np.zeros((WIDTH, 1), np.float32), "zero"),
                numpy_helper.from_array(np.array([[value]], np.float32), "one"),
            ],
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
        made.ir_version = 10
        onnx.save(made, tmp_path / name)
        return UnsafeImage(UnsafeImageConfig(model=str(tmp_path / name), clip=model)).annotate(batch_of([scene(1)]))

    assert write("half.onnx", 0.5) == {"unsafe_image_score": [0.5]}
    with pytest.raises(ValueError, match=r"two\.onnx: expected a probability"):
        write("two.onnx", 2.0)
