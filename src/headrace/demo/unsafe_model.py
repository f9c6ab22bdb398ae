"""Train a tiny image classifier on the drawn unsafe class and write it as ONNX, the form in which recipes take models.

The one thing a reader would get wrong: this network knows one drawn symbol. It shows that the step works, and says
nothing about real unsafe images; give a recipe a real model.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from headrace.demo.scenes import Pixels

IMAGE_SIZE = 64
MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
# Channels in and out, side of the kernel, stride; a max pool follows every convolution but the first.
LAYERS = ((3, 16, 5, 2), (16, 32, 3, 1), (32, 48, 3, 1), (48, 64, 3, 1))
EPOCHS, BATCH, LEARNING_RATE = 14, 32, 3e-3
OPSET = 17
IR_VERSION = 10


def train_unsafe_model(pictures: Sequence[Pixels], unsafe: Sequence[bool], path: Path, *, seed: int) -> None:
    """Train on `pictures` and write the classifier to `path`."""
    import torch

    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as for the commands: see run.py
    try:
        weights = _train(pictures, unsafe, seed)
    finally:
        torch.set_num_threads(num_threads)
    _write_onnx([np.asarray(weight.detach().numpy(), np.float32) for weight in weights], path)


def _train(pictures: Sequence[Pixels], unsafe: Sequence[bool], seed: int) -> list[Any]:
    import torch
    from torch.nn import functional

    images = torch.from_numpy(np.stack([_prepared(picture) for picture in pictures]))
    targets = torch.tensor([float(item) for item in unsafe])
    random = torch.Generator().manual_seed(seed)
    weights = _initial_weights(random)
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.02)
    steps = EPOCHS * (len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    for step in range(steps):
        if step % (len(images) // BATCH) == 0:
            order = torch.randperm(len(images), generator=random)
        start = step % (len(images) // BATCH) * BATCH
        chosen = order[start : start + BATCH]
        batch = images[chosen]
        batch = batch.flip(3) if step % 2 else batch
        loss = functional.binary_cross_entropy_with_logits(_logits(batch, weights), targets[chosen])
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    return weights


def _prepared(picture: Pixels) -> np.ndarray:
    small = cv2.resize(picture, (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_AREA)
    scaled = (small.astype(np.float32) / 255.0 - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def _initial_weights(random: Any) -> list[Any]:
    import torch

    weights = []
    for before, after, side, _ in LAYERS:
        scale = (2.0 / (before * side**2)) ** 0.5
        weights += [torch.randn((after, before, side, side), generator=random) * scale, torch.zeros(after)]
    weights += [torch.randn((1, LAYERS[-1][1]), generator=random) * 0.1, torch.zeros(1)]
    return [weight.requires_grad_() for weight in weights]


def _logits(images: Any, weights: Sequence[Any]) -> Any:
    """Return one logit an image. `_write_onnx` builds the same graph."""
    from torch.nn import functional

    for layer, (_, _, side, stride) in enumerate(LAYERS):
        kernel, bias = weights[2 * layer : 2 * layer + 2]
        images = functional.relu(functional.conv2d(images, kernel, bias, stride=stride, padding=side // 2))
        images = functional.max_pool2d(images, 2) if layer else images
    return functional.linear(images.amax(dim=(2, 3)), weights[-2], weights[-1])[:, 0]


def _write_onnx(weights: Sequence[np.ndarray], path: Path) -> None:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, last = [], "images"
    for layer, (_, _, side, stride) in enumerate(LAYERS):
        inputs, shape = [last, f"w{2 * layer}", f"w{2 * layer + 1}"], {"pads": [side // 2] * 4, "strides": [stride] * 2}
        nodes += [
            helper.make_node("Conv", inputs, [f"c{layer}"], **shape),
            helper.make_node("Relu", [f"c{layer}"], [f"r{layer}"]),
        ]
        last = f"r{layer}"
        if layer:
            nodes.append(helper.make_node("MaxPool", [last], [f"p{layer}"], kernel_shape=[2, 2], strides=[2, 2]))
            last = f"p{layer}"
    nodes += [
        helper.make_node("GlobalMaxPool", [last], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", f"w{len(weights) - 2}", f"w{len(weights) - 1}"], ["logit"], transB=1),
        helper.make_node("Sigmoid", ["logit"], ["unsafe"]),
    ]
    graph = helper.make_graph(
        nodes,
        "unsafe",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 3, IMAGE_SIZE, IMAGE_SIZE])],
        [helper.make_tensor_value_info("unsafe", TensorProto.FLOAT, ["batch", 1])],
        [numpy_helper.from_array(weight, f"w{place}") for place, weight in enumerate(weights)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = IR_VERSION
    properties = {"image_size": str(IMAGE_SIZE), "mean": _joined(MEAN), "std": _joined(STD)}
    helper.set_model_props(model, {f"headrace.{name}": value for name, value in properties.items()})
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())


def _joined(values: Sequence[float]) -> str:
    return ",".join(str(value) for value in values)
