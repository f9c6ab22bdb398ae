"""ONNX classifiers made here: what goes in, what comes out, what is refused."""

import numpy as np
import pytest

from headrace.curation.annotate.annotators.copy_embedding import CopyEmbedding, CopyEmbeddingConfig
from headrace.curation.annotate.annotators.onnx_image import model_input
from headrace.curation.annotate.annotators.unsafe_image import UnsafeImage, UnsafeImageConfig

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

SIZE = 8
PROPERTIES = {"headrace.image_size": str(SIZE), "headrace.mean": "0.5,0.5,0.5", "headrace.std": "0.25,0.25,0.25"}


def write_model(path, *, outputs=1, sigmoid=True, scale=1.0, properties=PROPERTIES, batch="batch"):
    """Write mean over the image of red -> `outputs` values."""
    from onnx import TensorProto, helper, numpy_helper

    weight = np.zeros((3, outputs), np.float32)
    weight[0, -1] = scale
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
        helper.make_node("Sigmoid" if sigmoid else "Identity", ["logits"], ["out"]),
    ]
    graph = helper.make_graph(
        nodes,
        "red",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [batch, 3, "height", "width"])],
        [helper.make_tensor_value_info("out", TensorProto.FLOAT, [batch, outputs])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 10
    helper.set_model_props(model, dict(properties))
    path.write_bytes(model.SerializeToString())
    return str(path)


def scores(batch, **config):
    return UnsafeImage(UnsafeImageConfig(**config)).annotate(batch)["unsafe_image_score"]


def test_the_probability_is_the_models_own(tmp_path, batch_of, scene):
    images = [scene(seed) for seed in range(5)]
    found = scores(batch_of([*images, None]), model=write_model(tmp_path / "red.onnx", scale=3.0))
    for pixels, score in zip(images, found, strict=False):
        red = model_input(pixels, SIZE, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))[0].mean(dtype=np.float64)
        assert score == pytest.approx(1 / (1 + np.exp(-3 * red)), abs=1e-5)
    assert found[-1] is None


def test_two_logits_are_turned_into_the_probability_of_the_second(tmp_path, batch_of, scene):
    batch = batch_of([scene(1)])
    one = scores(batch, model=write_model(tmp_path / "one.onnx", scale=2.0))
    two = scores(batch, model=write_model(tmp_path / "two.onnx", outputs=2, sigmoid=False, scale=2.0))
    assert two == pytest.approx(one, abs=1e-6)


def test_a_score_does_not_depend_on_the_neighbours(tmp_path, batch_of, scene):
    images = [scene(seed) for seed in range(6)]
    model = write_model(tmp_path / "red.onnx", batch=1)
    together = scores(batch_of(images), model=model)
    assert together == [scores(batch_of([pixels]), model=model)[0] for pixels in images]


def test_the_recipe_overrides_the_metadata_and_stands_in_for_it(tmp_path, batch_of, scene):
    bare = write_model(tmp_path / "bare.onnx", properties={})
    told = scores(batch_of([scene(2)]), model=bare, image_size=SIZE, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert told == scores(batch_of([scene(2)]), model=write_model(tmp_path / "red.onnx"))
    with pytest.raises(ValueError, match=r"bare\.onnx.*image_size"):
        scores(batch_of([scene(2)]), model=bare)
    with pytest.raises(ValueError, match=r"bare\.onnx.*unsafe_image\.mean"):
        scores(batch_of([scene(2)]), model=bare, image_size=SIZE)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sigmoid": False, "scale": 50.0}, "expected one probability"),
        ({"outputs": 3}, "expected one probability"),
        ({"properties": {**PROPERTIES, "headrace.std": "1,2"}}, "expected three numbers"),
        ({"properties": {**PROPERTIES, "headrace.image_size": "-3"}}, "whole number"),
    ],
)
def test_a_model_of_another_form_is_refused_by_name(options, message, tmp_path, batch_of):
    model = write_model(tmp_path / "odd.onnx", **options)
    with pytest.raises(ValueError, match=rf"odd\.onnx.*{message}"):
        scores(batch_of([np.full((20, 20, 3), 255, np.uint8)]), model=model)


def test_a_file_that_is_no_model_is_refused_by_name(tmp_path, batch_of, scene):
    (tmp_path / "noise.onnx").write_bytes(b"\x08\x07noise" * 50)
    with pytest.raises(ValueError, match=r"noise\.onnx.*does not load"):
        scores(batch_of([scene(1)]), model=str(tmp_path / "noise.onnx"))
    with pytest.raises(ValueError, match=r"nowhere\.onnx.*cannot be read"):
        scores(batch_of([scene(1)]), model=str(tmp_path / "nowhere.onnx"))


def test_a_size_that_the_network_does_not_take_is_one_line(tmp_path, batch_of, scene):
    write_model(tmp_path / "fixed.onnx", batch=1)
    model = onnx.load(tmp_path / "fixed.onnx")
    for place in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[place].dim_value = SIZE
    onnx.save(model, tmp_path / "fixed.onnx")
    with pytest.raises(ValueError, match=r"fixed\.onnx does not run on an image of 32 x 32: .*image_size") as why:
        scores(batch_of([scene(1)]), model=str(tmp_path / "fixed.onnx"), image_size=32)
    assert "\n" not in str(why.value)


def test_weights_outside_the_file_are_refused(tmp_path, batch_of, scene):
    """The digest is of one file, and a model must not make us read another."""
    path = tmp_path / "outside.onnx"
    write_model(path)
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location="secret.bin", size_threshold=0)
    assert (tmp_path / "secret.bin").exists()
    with pytest.raises(ValueError, match=r"outside\.onnx.*does not load"):
        scores(batch_of([scene(1)]), model=str(path))


def test_a_descriptor_for_copies_has_length_one_and_is_that_of_the_model(tmp_path, batch_of, scene):
    path = write_model(tmp_path / "copies.onnx", outputs=2, sigmoid=False, scale=3.0)
    images = [scene(1), scene(2)]
    found = CopyEmbedding(CopyEmbeddingConfig(model=path)).annotate(batch_of([*images, None]))["copy_embedding"]
    assert found[2] is None
    for pixels, vector in zip(images, found, strict=False):
        red = model_input(pixels, SIZE, (0.5,) * 3, (0.25,) * 3)[0].mean()
        np.testing.assert_allclose(np.float32(vector), [0, np.sign(red)], atol=1e-3)
    one = write_model(tmp_path / "one.onnx")
    with pytest.raises(ValueError, match=r"one\.onnx: expected a descriptor"):
        CopyEmbedding(CopyEmbeddingConfig(model=one)).annotate(batch_of(images))
    bare = CopyEmbedding(CopyEmbeddingConfig(model=write_model(tmp_path / "bare.onnx", properties={}), image_size=8))
    with pytest.raises(ValueError, match=r"set annotate\.copy_embedding\.mean"):
        bare.annotate(batch_of(images))
