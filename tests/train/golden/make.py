"""Golden numbers of AIM, its probe, CLIP's loss and AdamW, by slow code of its own: numpy in float64, no torch.

Written from the papers and from the published descriptions of the reference code (shapes and names: ml-aim's
`_aim(img_size=56, patch_size=14, embed_dim=48, num_blocks=8, num_heads=6)`; head and loss: l3m's SimpleDecoder and
RasterPixelLoss; probe: ml-aim's AttentionPoolingClassifier in eval mode; CLIP: arXiv:2103.00020, figure 3; AdamW:
arXiv:1711.05101, algorithm 2, PyTorch's order). It shares no line with what it is compared with. Weights and inputs are
sines, so that nothing but this file is needed to make the numbers again:

    python tests/train/golden/make.py > tests/train/golden/golden.json
"""

import json
import math
import sys
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

SIDE, PATCH, WIDTH, BLOCKS, HEADS, CLASSES = 56, 14, 48, 8, 6, 10
GRID = SIDE // PATCH
PATCHES, VALUES = GRID * GRID, PATCH * PATCH * 3
HEAD_WIDTH, HEAD_BLOCKS = 32, 2
PREFIXES = (3, 15)
NORM_EPS, HEAD_NORM_EPS = 1e-6, 1e-5


def waves(name: str, *shape: int, size: float) -> Array:
    """Return numbers that look drawn, a function of the name alone."""
    phase = zlib.crc32(name.encode()) % 1000
    return size * np.sin(1.7 * np.arange(math.prod(shape)) + phase + 0.01 * phase**1.5).reshape(shape)


def trunk_weights() -> dict[str, Array]:
    """Return a trunk under the released names."""
    shapes: dict[str, tuple[int, ...]] = {
        "preprocessor.patchifier.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "preprocessor.patchifier.proj.bias": (WIDTH,),
        "preprocessor.patchifier.norm.weight": (WIDTH,),
        "preprocessor.patchifier.norm.bias": (WIDTH,),
        "trunk.post_trunk_norm.weight": (WIDTH,),
        "trunk.post_trunk_norm.bias": (WIDTH,),
    }
    for block in range(BLOCKS):
        stem = f"trunk.blocks.{block}."
        for one in (1, 2):
            shapes |= {f"{stem}norm_{one}.weight": (WIDTH,), f"{stem}norm_{one}.bias": (WIDTH,)}
        shapes |= {
            f"{stem}attn.qkv.weight": (3 * WIDTH, WIDTH),
            f"{stem}attn.proj.weight": (WIDTH, WIDTH),
            f"{stem}mlp.fc1.weight": (4 * WIDTH, WIDTH),
            f"{stem}mlp.fc2.weight": (WIDTH, 4 * WIDTH),
        }
    return filled(shapes)


def head_weights(*, identity_residual: bool) -> dict[str, Array]:
    """Return a pixel head under our names; `identity_residual` adds a norm to each block, as l3m's has it."""
    shapes: dict[str, tuple[int, ...]] = {
        "decoder_projection.weight": (HEAD_WIDTH, WIDTH),
        "decoder_projection.bias": (HEAD_WIDTH,),
        "decoder_norm.weight": (HEAD_WIDTH,),
        "decoder_norm.bias": (HEAD_WIDTH,),
        "decoder_pred.weight": (VALUES, HEAD_WIDTH),
        "decoder_pred.bias": (VALUES,),
    }
    for block in range(HEAD_BLOCKS):
        stem = f"decoder_blocks.{block}."
        for one in (1, 2) if identity_residual else (2,):
            shapes |= {f"{stem}norm_{one}.weight": (HEAD_WIDTH,), f"{stem}norm_{one}.bias": (HEAD_WIDTH,)}
        shapes |= {
            f"{stem}mlp.fc1.weight": (4 * HEAD_WIDTH, HEAD_WIDTH),
            f"{stem}mlp.fc2.weight": (HEAD_WIDTH, 4 * HEAD_WIDTH),
        }
    return filled(shapes)


def probe_weights() -> dict[str, Array]:
    """Return an attentive classifier under ml-aim's names."""
    shapes: dict[str, tuple[int, ...]] = {"cls_token": (WIDTH,), "k": (WIDTH, WIDTH), "v": (WIDTH, WIDTH)}
    weights = filled(shapes | {"linear": (CLASSES, WIDTH)})
    return weights | {"mean": waves("mean", WIDTH, size=0.3), "variance": 1.0 + waves("variance", WIDTH, size=0.5)}


def filled(shapes: dict[str, tuple[int, ...]]) -> dict[str, Array]:
    """Return arrays of these shapes: norms about 1, everything else about 0."""
    found = {}
    for name, shape in shapes.items():
        is_scale = "norm" in name and name.endswith("weight")
        fan = shape[-1] if len(shape) == 2 else math.prod(shape[1:]) or 1
        found[name] = (1.0 if is_scale else 0.0) + waves(name, *shape, size=0.2 if len(shape) == 1 else 1.5 / fan**0.5)
    return found


def images() -> Array:
    """Return [2, 3, H, H], normalised pixels."""
    return waves("images", 2, 3, SIDE, SIDE, size=1.3) + waves("more", 2, 3, SIDE, SIDE, size=0.4)


def normed(x: Array, weight: Array, bias: Array, eps: float) -> Array:
    """LayerNorm of one token."""
    mean = sum(x) / len(x)
    variance = sum((x - mean) ** 2) / len(x)
    return (x - mean) / math.sqrt(variance + eps) * weight + bias


def gelu(x: Array) -> Array:
    """The exact one."""
    return np.array([one * 0.5 * (1 + math.erf(one / math.sqrt(2))) for one in x])


def position(place: int, width: int) -> Array:
    """Fixed positions: the column in the first half, the row in the second."""
    row, column = divmod(place, GRID)
    quarter = width // 4
    out = []
    for where in (column, row):
        angles = [where / 10000 ** (number / quarter) for number in range(quarter)]
        out += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    return np.array(out)


def embedded(image: Array, weights: dict[str, Array]) -> list[Array]:
    """Patches as tokens."""
    stem = "preprocessor.patchifier."
    tokens = []
    for place in range(PATCHES):
        row, column = divmod(place, GRID)
        patch = image[:, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH]
        token = np.array([(kernel * patch).sum() for kernel in weights[f"{stem}proj.weight"]])
        token = normed(
            token + weights[f"{stem}proj.bias"], weights[f"{stem}norm.weight"], weights[f"{stem}norm.bias"], NORM_EPS
        )
        tokens.append(token + position(place, WIDTH))
    return tokens


def attended(tokens: list[Array], qkv: Array, prefix: int | None) -> list[Array]:
    """Each token's mix of those that it may see: all, or those of the prefix and those not behind it."""
    size = WIDTH // HEADS
    parts = [qkv @ token for token in tokens]
    mixed = []
    for here in range(PATCHES):
        seen = [there for there in range(PATCHES) if prefix is None or there < prefix or there <= here]
        out = []
        for head in range(HEADS):
            span = slice(head * size, (head + 1) * size)
            query = parts[here][:WIDTH][span]
            scores = np.array([query @ parts[there][WIDTH : 2 * WIDTH][span] / math.sqrt(size) for there in seen])
            share = np.exp(scores - scores.max())
            share /= share.sum()
            out.append(sum(one * parts[there][2 * WIDTH :][span] for one, there in zip(share, seen, strict=True)))
        mixed.append(np.concatenate(out))
    return mixed


def trunk_outputs(image: Array, weights: dict[str, Array], prefix: int | None) -> list[list[Array]]:
    """Return each block's output, tokens of one image."""
    tokens, outputs = embedded(image, weights), []
    for block in range(BLOCKS):
        own = {name.split(f"blocks.{block}.")[1]: one for name, one in weights.items() if f"blocks.{block}." in name}
        looked = [normed(token, own["norm_1.weight"], own["norm_1.bias"], NORM_EPS) for token in tokens]
        mixed = attended(looked, own["attn.qkv.weight"], prefix)
        tokens = [token + own["attn.proj.weight"] @ mix for token, mix in zip(tokens, mixed, strict=True)]
        tokens = [
            token
            + own["mlp.fc2.weight"]
            @ gelu(own["mlp.fc1.weight"] @ normed(token, own["norm_2.weight"], own["norm_2.bias"], NORM_EPS))
            for token in tokens
        ]
        outputs.append(tokens)
    return outputs


def last_norm(tokens: list[Array], weights: dict[str, Array]) -> list[Array]:
    """The trunk's last norm."""
    scale, shift = weights["trunk.post_trunk_norm.weight"], weights["trunk.post_trunk_norm.bias"]
    return [normed(token, scale, shift, NORM_EPS) for token in tokens]


def predicted(token: Array, place: int, head: dict[str, Array]) -> Array:
    """Pixels of the next patch."""
    x = head["decoder_projection.weight"] @ token + head["decoder_projection.bias"] + position(place, HEAD_WIDTH)
    for block in range(HEAD_BLOCKS):
        stem = f"decoder_blocks.{block}."
        if f"{stem}norm_1.weight" in head:
            x = x + normed(x, head[f"{stem}norm_1.weight"], head[f"{stem}norm_1.bias"], HEAD_NORM_EPS)
        inner = normed(x, head[f"{stem}norm_2.weight"], head[f"{stem}norm_2.bias"], HEAD_NORM_EPS)
        x = x + head[f"{stem}mlp.fc2.weight"] @ gelu(head[f"{stem}mlp.fc1.weight"] @ inner)
    x = normed(x, head["decoder_norm.weight"], head["decoder_norm.bias"], HEAD_NORM_EPS)
    return np.asarray(head["decoder_pred.weight"] @ x + head["decoder_pred.bias"])


def target(image: Array, place: int) -> Array:
    """Pixels of one patch, channel fastest, with mean 0 and unbiased variance 1."""
    row, column = divmod(place, GRID)
    values = [
        image[channel, row * PATCH + down, column * PATCH + right]
        for down in range(PATCH)
        for right in range(PATCH)
        for channel in range(3)
    ]
    mean = sum(values) / VALUES
    variance = sum((value - mean) ** 2 for value in values) / (VALUES - 1)
    return np.array([(value - mean) / math.sqrt(variance + 1e-6) for value in values])


def aim_loss(*, identity_residual: bool) -> float:
    """Mean over the predicted patches of both images: those behind the prefix."""
    weights, head = trunk_weights(), head_weights(identity_residual=identity_residual)
    errors = []
    for image, prefix in zip(images(), PREFIXES, strict=True):
        tokens = last_norm(trunk_outputs(image, weights, prefix)[-1], weights)
        for place in range(prefix, PATCHES):
            wrong = predicted(tokens[place - 1], place - 1, head) - target(image, place)
            errors.append(float((wrong**2).sum()) / VALUES)
    return sum(errors) / len(errors)


def probe_logits() -> Array:
    """Return [2, classes]: the mean of the last six blocks through BatchNorm, one query and a linear layer."""
    weights, probe = trunk_weights(), probe_weights()
    size, out = WIDTH // HEADS, []
    for image in images():
        outputs = trunk_outputs(image, weights, None)[-6:]
        mean = [sum(block[place] for block in outputs) / 6 for place in range(PATCHES)]
        tokens = [(token - probe["mean"]) / np.sqrt(probe["variance"] + 1e-6) for token in mean]
        pooled = []
        for head in range(HEADS):
            span = slice(head * size, (head + 1) * size)
            scores = np.array(
                [probe["cls_token"][span] @ (probe["k"] @ token)[span] / math.sqrt(size) for token in tokens]
            )
            share = np.exp(scores - scores.max())
            share /= share.sum()
            pooled.append(sum(one * (probe["v"] @ token)[span] for one, token in zip(share, tokens, strict=True)))
        out.append(probe["linear"] @ np.concatenate(pooled))
    return np.array(out)


def pairs() -> tuple[Array, Array]:
    """Return features [5, 8] of pictures and of captions, each near its own."""
    image = waves("image", 5, 8, size=1.0) ** 3
    return image, 2 * image + waves("text", 5, 8, size=1.0)


def clip_loss(scale: float, image: Array, text: Array) -> float:
    """Mean of both cross-entropies over a batch of features that are not normalised yet."""
    image, text = (np.array([row / math.sqrt(sum(row**2)) for row in rows]) for rows in (image, text))
    total = 0.0
    for here in range(len(image)):
        for query, keys in ((image[here], text), (text[here], image)):
            logits = [math.exp(scale) * float(query @ key) for key in keys]
            total += math.log(sum(math.exp(logit) for logit in logits)) - logits[here]
    return total / 2 / len(image)


def siglip_loss(scale: float, bias: float, image: Array, text: Array) -> float:
    """Mean over pictures of the sum over all captions of -log sigmoid(+-logit): arXiv:2303.15343, algorithm 1."""
    image, text = (np.array([row / math.sqrt(sum(row**2)) for row in rows]) for rows in (image, text))
    total = 0.0
    for here in range(len(image)):
        for there in range(len(text)):
            logit = math.exp(scale) * float(image[here] @ text[there]) + bias
            total += math.log1p(math.exp(-logit if here == there else logit))
    return total / len(image)


def adamw_steps(steps: int) -> dict[str, Array]:
    """Weights after some steps on gradients that are sines, clipped together; vectors are not decayed."""
    weights = {"matrix": waves("matrix", 4, 3, size=1.0), "vector": waves("vector", 5, size=1.0)}
    first, second = ({name: np.zeros_like(one) for name, one in weights.items()} for _ in range(2))
    lr, decay, clip, low, high, eps = 1e-2, 0.05, 1.0, 0.9, 0.95, 1e-8
    for step in range(1, steps + 1):
        gradients = {name: waves(f"{name} {step}", *one.shape, size=1.0) for name, one in weights.items()}
        norm = math.sqrt(sum(float((one**2).sum()) for one in gradients.values()))
        for name, gradient in gradients.items():
            gradient = gradient * min(1.0, clip / (norm + 1e-6))
            first[name] = low * first[name] + (1 - low) * gradient
            second[name] = high * second[name] + (1 - high) * gradient**2
            if name == "matrix":
                weights[name] = weights[name] * (1 - lr * decay)
            ahead = first[name] / (1 - low**step)
            weights[name] = weights[name] - lr * ahead / (np.sqrt(second[name] / (1 - high**step)) + eps)
    return weights


def golden() -> dict[str, Any]:
    """Return all numbers as plain data."""
    weights = trunk_weights()
    full = [last_norm(trunk_outputs(image, weights, None)[-1], weights) for image in images()]
    masked = last_norm(trunk_outputs(images()[0], weights, PREFIXES[0])[-1], weights)
    return {
        "trunk": listed(np.array(full)[:, ::5]),
        "trunk_with_prefix": listed(np.array(masked)[::5]),
        "aim_loss": aim_loss(identity_residual=False),
        "aim_loss_identity_residual": aim_loss(identity_residual=True),
        "probe_logits": listed(probe_logits()),
        "clip_loss": clip_loss(2.6593, *pairs()),
        "siglip_loss": siglip_loss(math.log(10), -10.0, *pairs()),
        "adamw": {name: listed(one) for name, one in adamw_steps(20).items()},
    }


def listed(array: Array) -> Any:
    """Return nested lists, rounded to what float64 sums agree on."""
    return np.round(array, 10).tolist()


if __name__ == "__main__":
    sys.stdout.write(json.dumps(golden(), indent=1) + "\n")
