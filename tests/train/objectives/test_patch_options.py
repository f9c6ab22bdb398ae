"""Every option of the objectives that predict patches, against loops in float64 and against the plain step."""

import copy
import dataclasses
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from slow_patches import Slow

from headrace.pipeline import Batch
from headrace.train.batches import micro_batches
from headrace.train.execution import Execution
from headrace.train.objectives.aim import Aim, AimConfig
from headrace.train.objectives.build import build_objective
from headrace.train.objectives.codebook import CodebookConfig
from headrace.train.objectives.masked import Masked, MaskedConfig
from headrace.train.objectives.orders import ORDERS, patch_order
from headrace.train.objectives.patch_choice import chosen_patches
from headrace.train.objectives.patch_config import AIM_SHAPES, PatchConfig
from headrace.train.objectives.patch_objective import PatchObjective

SMALL: dict[str, Any] = {
    "model": "tiny",
    "patch": 4,
    "width": 16,
    "depth": 2,
    "heads": 2,
    "head_width": 16,
    "head_depth": 2,
}

CODES = CodebookConfig(path="not read here", size=7, sha256="")

CONFIGS: dict[str, PatchConfig] = {
    name: (MaskedConfig if kind == "masked" else AimConfig)(kind=kind, **SMALL | options)
    for name, kind, options in (
        ("default", "aim", {}),
        ("causal", "aim", {"attention": "causal"}),
        ("pixels", "aim", {"targets": "pixels"}),
        ("tokens", "aim", {"targets": "tokens", "codebook": CODES, "order": "spiral"}),
        ("linear", "aim", {"head": "none"}),
        ("identity", "aim", {"head_identity_residual": True}),
        ("transformer", "aim", {"head": "transformer"}),
        ("transformer, causal", "aim", {"head": "transformer", "attention": "causal", "head_heads": 4}),
        ("eps", "aim", {"norm_eps": 1e-2}),
        ("spiral", "aim", {"order": "spiral"}),
        ("checkerboard", "aim", {"order": "checkerboard", "head": "none", "attention": "causal"}),
        ("random", "aim", {"order": "random", "order_seed": 5, "head": "transformer"}),
        ("masked", "masked", {}),
        ("masked, half", "masked", {"mask_ratio": 0.5, "targets": "pixels"}),
        ("masked, transformer", "masked", {"head": "transformer"}),
        ("masked, tokens", "masked", {"targets": "tokens", "codebook": CODES, "head": "none"}),
    )
}
SIDE, PATCHES = 16, 16
every_option = pytest.mark.parametrize("name", CONFIGS)


def build(config: PatchConfig, seed: int = 7) -> PatchObjective:
    objective = build_objective(config, image_size=SIDE, seed=seed)  # type: ignore[arg-type]
    assert isinstance(objective, PatchObjective)
    if objective.codebook_CP is not None:
        objective.codebook_CP.copy_(torch.randn(7, 48, generator=torch.Generator().manual_seed(3)))
        objective.codebook_is_read = True
    return objective


def weights_of(objective: PatchObjective) -> dict[str, np.ndarray]:
    return {name: tensor.double().numpy().copy() for name, tensor in objective.state_dict().items()}


def slow_loss(objective: PatchObjective, batch: Batch, weights: dict[str, np.ndarray]) -> tuple[float, int]:
    """Return the loss of the valid pictures of a batch, and how many patches are predicted."""
    config: Any = objective.config  # type: ignore[attr-defined]
    slow = Slow(
        weights=weights,
        patch=config.patch,
        heads=config.shape.heads,
        eps=config.norm_eps,
        head=config.head,
        head_heads=config.head_heads or 2,
        targets=config.targets,
        codebook=None if objective.codebook_CP is None else objective.codebook_CP.double().numpy(),
    )
    total, terms = 0.0, 0
    for sample in np.flatnonzero(batch.valid):
        picture = batch.images[sample]
        if isinstance(objective, Masked):
            hidden = frozenset(np.flatnonzero(objective.hidden(batch)[sample]).tolist())
            pairs = [(patch, patch) for patch in sorted(hidden)]
            total += slow.loss(picture, sees=lambda _i, _j: True, predictions=pairs, hidden=hidden)
        else:
            assert isinstance(objective, Aim)
            # A causal output sees nothing but itself and those before it; that is a prefix of nothing.
            prefix = 0 if config.attention == "causal" else int(objective.prefixes(batch)[sample])
            order = slow_order(config.order, PATCHES, config.order_seed)
            pairs = [(order[t], order[t + 1]) for t in range(PATCHES - 1) if t + 1 >= prefix]
            total += slow.loss(picture, sees=attention_of(order, prefix), predictions=pairs)
        terms += len(pairs)
    return total, terms


def slow_order(order: str, patches: int, seed: int) -> list[int]:
    """Patches by what the options say of them; a spiral by walking it, and a random one as it is given."""
    side = math.isqrt(patches)
    if order == "random":
        return patch_order("random", side, seed).tolist()
    if order == "checkerboard":
        return sorted(range(patches), key=lambda patch: ((patch // side + patch % side) % 2, patch))
    if order == "raster":
        return list(range(patches))
    # The way back: from the top left inwards, down, right, up and left, turning where the way ends.
    way, row, column, turn = [0], 0, 0, 0
    while len(way) < patches:
        down, right = ((1, 0), (0, 1), (-1, 0), (0, -1))[turn % 4]
        at = (row + down, column + right)
        if min(at) < 0 or max(at) >= side or at[0] * side + at[1] in way:
            turn += 1
            continue
        (row, column) = at
        way.append(row * side + column)
    return way[::-1]


def attention_of(order: list[int], prefix: int) -> Callable[[int, int], bool]:
    place = {patch: t for t, patch in enumerate(order)}
    return lambda i, j: place[j] < prefix or place[j] <= place[i]


@every_option
def test_loss_and_gradient_are_those_of_the_slow_loops(name: str, make_batch: Callable[..., Batch]) -> None:
    objective, batch = build(CONFIGS[name]).double(), make_batch(3, first=40, valid=[True, False, True])
    loss, _ = objective(batch)
    weights = weights_of(objective)
    expected, terms = slow_loss(objective, batch, weights)
    assert objective.num_terms(batch) == terms
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-6)
    loss.backward()
    rng = np.random.default_rng(1)
    for parameter_name, parameter in objective.named_parameters():
        if not parameter_name.endswith(
            ("0.attn.qkv.weight", "proj.weight", "norm_2.weight", "pred.bias", "mask_token")
        ):
            continue
        place = tuple(int(rng.integers(size)) for size in parameter.shape)
        losses = []
        for shift in (1e-4, -1e-4):
            moved = copy.deepcopy(weights)
            moved[parameter_name][place] += shift
            losses.append(slow_loss(objective, batch, moved)[0])
        assert parameter.grad is not None
        slope = (losses[0] - losses[1]) / 2e-4
        assert float(parameter.grad[place]) == pytest.approx(slope, rel=1e-3, abs=1e-5), parameter_name


@every_option
def test_every_parameter_gets_a_gradient(name: str, make_batch: Callable[..., Batch]) -> None:
    objective = build(CONFIGS[name])
    objective(make_batch(4))[0].backward()
    assert [part for part, p in objective.named_parameters() if p.grad is None or not p.grad.any()] == []


@every_option
@torch.no_grad()
def test_parts_sum_to_the_whole(name: str, make_batch: Callable[..., Batch]) -> None:
    objective, batch = build(CONFIGS[name]), make_batch(7, valid=[True] * 5 + [False, True])
    parts = micro_batches(batch, 3)
    assert sum(objective.num_terms(part) for part in parts) == objective.num_terms(batch)
    assert sum(float(objective(part)[0]) for part in parts) == pytest.approx(float(objective(batch)[0]), rel=1e-6)
    assert sum(objective.needed_flops(part) for part in parts) == pytest.approx(objective.needed_flops(batch))


@every_option
@torch.no_grad()
def test_a_batch_of_padding_has_no_loss(name: str, make_batch: Callable[..., Batch]) -> None:
    objective, empty = build(CONFIGS[name]), make_batch(2, valid=[False, False])
    assert (objective.num_terms(empty), float(objective(empty)[0])) == (0, 0.0)


@pytest.fixture
def traced(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Stages are traced and differentiated as when they are compiled, and run without a compiler of C++."""
    torch._dynamo.reset()
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, **how: compiled(function, backend="aot_eager", **how))
    yield
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")
@pytest.mark.usefixtures("traced")
@pytest.mark.parametrize("name", ["linear", "transformer", "masked", "masked, transformer"])
def test_compiled_blocks_give_the_same_step(name: str, make_batch: Callable[..., Batch]) -> None:
    plain, compiled = build(CONFIGS[name]), build(CONFIGS[name])
    plain.run_as(Execution())
    compiled.run_as(Execution(compiled=True, recompute="full"))
    for first in (0, 4):
        losses = []
        for objective in (plain, compiled):
            objective.zero_grad()
            loss, _ = objective(make_batch(4, first=first))
            loss.backward()
            losses.append(float(loss.detach()))
        assert losses[0] == pytest.approx(losses[1], rel=1e-6)
        for one, other in zip(plain.parameters(), compiled.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize("name", ["default", "causal", "transformer", "spiral", "random"])
def test_block_masks_give_the_same_loss(name: str, make_batch: Callable[..., Batch]) -> None:
    wide = dataclasses.replace(CONFIGS[name], width=32, head_width=32, head_heads=None)
    objective, batch = build(wide), make_batch(5)
    dense = float(objective(batch)[0])
    objective.run_as(Execution(flex=True))
    assert objective.execution.flex
    assert float(objective(batch)[0]) == pytest.approx(dense, rel=1e-5)


def test_a_narrow_transformer_head_falls_back_to_dense_masks(caplog: pytest.LogCaptureFixture) -> None:
    objective = build(dataclasses.replace(CONFIGS["transformer"], width=32, head_width=16, head_heads=2))
    objective.run_as(Execution(flex=True))
    assert not objective.execution.flex
    assert "heads of 8 channels" in caplog.text


def test_causal_attention_is_a_prefix_of_nothing_and_predicts_all_but_the_first(
    make_batch: Callable[..., Batch],
) -> None:
    objective, batch = build(CONFIGS["causal"]), make_batch(3)
    assert objective.num_terms(batch) == 3 * (PATCHES - 1)
    before = float(objective(batch)[0].detach())
    # The last patch is seen by itself alone, and nothing is predicted from there.
    batch.images[:, 12:, 12:] = 255 - batch.images[:, 12:, 12:]
    changed = objective.encoder(objective.normalise(batch.images), objective._attends(torch.ones(3, dtype=torch.int64)))  # type: ignore[operator]
    batch.images[:, 12:, 12:] = 255 - batch.images[:, 12:, 12:]
    whole = objective.encoder(objective.normalise(batch.images), objective._attends(torch.ones(3, dtype=torch.int64)))  # type: ignore[operator]
    assert torch.equal(changed[:, :-1], whole[:, :-1])
    assert not torch.equal(changed[:, -1], whole[:, -1])
    assert float(objective(batch)[0].detach()) == before


def test_hidden_patches_are_a_function_of_seed_and_position() -> None:
    positions = np.arange(4000)
    hidden = chosen_patches(positions, 16, 12, key=3)
    assert (hidden.sum(axis=1) == 12).all()
    assert np.array_equal(chosen_patches(np.array([17, 3999]), 16, 12, key=3), hidden[[17, 3999]])
    assert not np.array_equal(chosen_patches(positions, 16, 12, key=4), hidden)
    # Each patch is hidden 3000 times of 4000, to six standard deviations; so is each pair, 4000 * 12/16 * 11/15 times.
    counts = hidden.sum(axis=0)
    assert np.abs(counts - 3000).max() < 6 * np.sqrt(4000 * 0.75 * 0.25)
    pairs = hidden.astype(int).T @ hidden.astype(int)
    assert np.abs(pairs[~np.eye(16, dtype=bool)] - 2200).max() < 6 * np.sqrt(4000 * 0.55 * 0.45)


def test_hidden_patches_are_those_of_numpys_generator() -> None:
    """Word by word: an order that a later version must not change, or runs would not continue."""
    positions = np.array([0, 1, 5, 2**40])
    hidden = chosen_patches(positions, 10, 4, key=9)
    for row, position in zip(hidden, positions.tolist(), strict=True):
        words: list[int] = []
        for block in range(3):
            # numpy counts up before it draws
            counter = (position << 64) + block - 1
            words += np.random.Philox(key=9, counter=counter % (1 << 256)).random_raw(4).tolist()
        smallest = sorted(range(10), key=lambda patch, words=words: words[patch])[:4]  # type: ignore[misc]
        assert np.flatnonzero(row).tolist() == sorted(smallest)


def test_hidden_pixels_do_not_reach_the_trunk(make_batch: Callable[..., Batch]) -> None:
    objective, batch = build(CONFIGS["masked"]), make_batch(1)
    assert isinstance(objective, Masked)
    patch = int(np.flatnonzero(objective.hidden(batch)[0])[0])
    top, left = patch // 4 * 4, patch % 4 * 4
    tokens = []
    for _ in range(2):
        seen: list[torch.Tensor] = []
        hook = objective.encoder.trunk.post_trunk_norm.register_forward_hook(lambda _m, _i, out: seen.append(out))  # noqa: B023
        objective(batch)
        hook.remove()
        tokens.append(seen[0])
        batch.images[0, top : top + 4, left : left + 4] ^= 255
    assert torch.equal(*tokens)


@pytest.mark.parametrize(("ratio", "hidden"), [(0.5, 8), (0.75, 12), (0.01, 1), (0.99, 15)])
def test_the_masked_share_is_rounded_to_patches(ratio: float, hidden: int, make_batch: Callable[..., Batch]) -> None:
    config = dataclasses.replace(CONFIGS["masked"], mask_ratio=ratio)  # type: ignore[call-arg]
    assert build(config).num_terms(make_batch(2)) == 2 * hidden


def test_operations_are_counted_for_every_head(make_batch: Callable[..., Batch]) -> None:
    """Written out: 6 x parameters x tokens, 12 x width x pairs a block, and what is predicted from where it is."""
    batch = make_batch(6)
    for name in ("linear", "transformer", "masked", "causal", "masked, tokens"):
        objective = build(CONFIGS[name])
        trunk, head = (sum(p.numel() for p in part.parameters()) for part in (objective.encoder, objective.head))
        terms = objective.num_terms(batch)
        pairs = 16 * 16 * 6
        if isinstance(objective, Aim):
            pairs = sum(i + 1 if i >= s else s for s in objective.prefixes(batch).tolist() for i in range(16))
        expected = 6 * trunk * 96 + 12 * 2 * 16 * pairs
        if name == "transformer":
            last = 2 * 16 + 16 * 48 + 48  # norm and linear layer
            expected += 6 * (head - last) * 96 + 6 * last * terms + 12 * 2 * 16 * pairs
        else:
            expected += 6 * head * terms
        codes = 2 * 7 * 48 if "tokens" in name else 0  # one product with each code, forward alone
        expected += codes * terms
        assert objective.needed_flops(batch) == expected
        full = 6 * (trunk + head) * 16 + 12 * 2 * 16 * 256 * (2 if name == "transformer" else 1) + codes * 16
        assert objective.train_flops_per_image == full


def test_the_deeper_twin_has_the_parameters_of_the_wide_one() -> None:
    wide, deep = AIM_SHAPES["0.6B"], AIM_SHAPES["0.6B-deep"]
    assert 12 * wide.width**2 * wide.depth == 12 * deep.width**2 * deep.depth
    assert wide.width // wide.heads == deep.width // deep.heads == 128


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"norm_eps": 0.0}, "norm_eps must be above 0"),
        (
            {"head": "none", "head_identity_residual": True},
            "head_identity_residual belongs to head mlp, and head is none",
        ),
        ({"head_heads": 2}, "head_heads belongs to head transformer, and head is mlp"),
        ({"order": "spiral", "order_seed": 2}, "order_seed belongs to order random, and order is spiral"),
        ({"head": "transformer", "head_heads": 3}, "head_heads must divide head_width 16, got 3"),
        ({"head": "transformer", "head_width": 4}, "head_heads must divide head_width 4, got 0; set head_heads"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AimConfig(kind="aim", **SMALL | options)


@pytest.mark.parametrize("ratio", [0.0, 1.0, float("nan")])
def test_a_share_that_hides_nothing_or_everything_is_refused(ratio: float) -> None:
    with pytest.raises(ValueError, match="mask_ratio must be within"):
        MaskedConfig(kind="masked", mask_ratio=ratio, **SMALL)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 14, 16])
def test_orders_are_permutations_of_any_grid(side: int) -> None:
    for order in ORDERS:
        assert sorted(patch_order(order, side, 3).tolist()) == list(range(side * side))
    for order in ("spiral", "checkerboard"):
        assert patch_order(order, side).tolist() == slow_order(order, side * side, 0)  # type: ignore[arg-type]


def test_orders_of_a_small_grid_written_out() -> None:
    """A spiral runs clockwise from the middle and ends at the top left; a checkerboard begins there."""
    assert patch_order("spiral", 3).tolist() == [4, 1, 2, 5, 8, 7, 6, 3, 0]
    assert patch_order("checkerboard", 3).tolist() == [0, 2, 4, 6, 8, 1, 3, 5, 7]
    # A later version must not change it, or runs would not continue.
    assert patch_order("random", 3).tolist() == [0, 1, 6, 8, 7, 4, 5, 2, 3]
    assert patch_order("random", 3, 1).tolist() == [5, 8, 0, 3, 1, 7, 2, 6, 4]
