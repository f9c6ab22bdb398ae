"""A stage that computes its activations again gives the same gradients, bit for bit."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from headrace.train.models.stage import ResidualStream
from headrace.train.models.vit import Block, Vit, VitConfig, prefix_attention

WIDTH, LENGTH = 16, 9


class Counted(TorchDispatchMode):
    """Counts operations by name."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls[str(func)] = self.calls.get(str(func), 0) + 1
        return func(*args, **(kwargs or {}))


def run(recompute: str, x: Tensor, mask: Tensor | None) -> tuple[list[Tensor], dict[str, int]]:
    torch.manual_seed(0)
    block = Block(WIDTH, 2)
    block.recompute = recompute  # type: ignore[assignment]
    with Counted() as counted:
        block(x, mask).square().sum().backward()
    return [parameter.grad for parameter in block.parameters() if parameter.grad is not None], counted.calls


@pytest.mark.parametrize("masked", [False, True])
def test_gradients_are_the_same_whatever_is_kept(masked: bool) -> None:
    x = torch.randn(3, LENGTH, WIDTH)
    mask = prefix_attention(torch.tensor([1, 4, 8]), LENGTH)[:, None] if masked else None
    plain, calls = run("none", x, mask)
    gelus, products = calls["aten.gelu.default"], calls["aten.mm.default"]
    for recompute, again in (("selective", 0), ("full", 4)):
        gradients, calls = run(recompute, x, mask)
        assert all(torch.equal(one, other) for one, other in zip(plain, gradients, strict=True))
        assert calls["aten.gelu.default"] == 2 * gelus
        # The last product of a block is not needed for its own gradient, so `full` may leave it out.
        assert products + max(0, again - 1) <= calls["aten.mm.default"] <= products + again


def test_nothing_is_computed_again_without_gradients() -> None:
    block = Block(WIDTH, 2)
    block.recompute = "full"
    with torch.no_grad(), Counted() as counted:
        block(torch.randn(2, LENGTH, WIDTH), None)
    assert counted.calls["aten.gelu.default"] == 1


def test_the_residual_stream_keeps_the_format_it_is_given() -> None:
    torch.manual_seed(0)
    vit = Vit(VitConfig(image_size=12, patch=4, width=WIDTH, depth=2, heads=2))
    images, formats = torch.randn(2, 3, 12, 12), []
    for block in vit.trunk.blocks:
        block.register_forward_hook(lambda _module, _inputs, out: formats.append(out.dtype))
    outputs = []
    for dtype in (None, torch.bfloat16):
        (stream,) = (module for module in vit.modules() if isinstance(module, ResidualStream))
        stream.dtype = dtype
        with torch.autocast("cpu", torch.bfloat16):
            outputs.append(vit(images).float())
    assert formats == [torch.float32] * 2 + [torch.bfloat16] * 2
    torch.testing.assert_close(outputs[0], outputs[1], atol=0.05, rtol=0.05)


def test_a_residual_stream_has_no_weights_and_changes_no_name() -> None:
    assert not ResidualStream().state_dict()
    assert not any("residual" in name for name in nn.Sequential(ResidualStream()).state_dict())
