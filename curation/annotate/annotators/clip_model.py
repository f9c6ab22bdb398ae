"""Load any open_clip model of local files, and take features: the one file of curation that imports torch.

open_clip reads a folder of `open_clip_config.json` and weights; such a folder is made for it, so that names, single
config files and folders all take one road, nothing is downloaded, and torch files are read without pickle. A model
trained with quick GELU has a name or config that says so; the weights do not.
"""

import contextlib
import json
import logging
import pickle
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from headrace import files
from headrace.curation.annotate.annotator import Pixels
from headrace.curation.annotate.annotators.clip_files import ClipFiles, clip_files
from headrace.text import one_line

MAX_MODEL_CONFIG_BYTES = 1 << 20
# Of a config, what reaches the tokenizer: transformers takes `trust_remote_code` the same way.
TOKENIZER_SETTINGS = frozenset(("clean", "language", "reduction_mask", "strip_sep_token"))

# open_clip finds weights by these names; the suffix decides who reads them.
_WEIGHTS = {".safetensors": "open_clip_model.safetensors", ".pt": "open_clip_pytorch_model.bin"}
_WEIGHTS |= dict.fromkeys((".pth", ".bin"), _WEIGHTS[".pt"])


@dataclass(frozen=True, slots=True)
class ClipModel:
    """An open_clip model in evaluation mode, its image transform and its tokenizer."""

    network: Any
    transform: Any
    tokenize: Any
    device: str
    image_size: int


@cache
def load_clip(model: str, checkpoint: str, device: str) -> ClipModel:
    """Load a model once in this process. Raises ValueError naming the file that is wrong."""
    import open_clip
    import torch
    from safetensors import SafetensorError

    found = clip_files(model, checkpoint)
    config = read_model_config(found)
    checkpoint = found.checkpoint
    weights = Path(checkpoint).absolute()
    if weights.suffix not in _WEIGHTS:
        raise ValueError(f"CLIP checkpoint {checkpoint}: expected a file *{', *'.join(_WEIGHTS)}")
    if not weights.is_file():
        raise ValueError(f"CLIP checkpoint {checkpoint} does not exist; check annotate.clip.checkpoint")
    place = _place(device)
    with tempfile.TemporaryDirectory(prefix="headrace-clip-") as folder, _quiet():
        Path(folder, "open_clip_config.json").write_text(json.dumps(config))
        Path(folder, _WEIGHTS[weights.suffix]).symlink_to(weights)
        for name, path in found.tokenizer.items():
            Path(folder, name).symlink_to(Path(path).absolute())
        try:
            network, transform = open_clip.create_model_from_pretrained(
                f"local-dir:{folder}", device=place, weights_only=True
            )
            tokenize = open_clip.get_tokenizer(f"local-dir:{folder}")
        except (*_LOAD_ERRORS, SafetensorError, torch.jit.Error) as error:
            # torch's own message advises to switch its guard off.
            pickled = isinstance(error, pickle.UnpicklingError)
            why = "it holds more than tensors; convert it to .safetensors" if pickled else _first_line(error)
            raise ValueError(
                f"CLIP checkpoint {checkpoint} does not load as model {model}: {why}; "
                "check annotate.clip.model and annotate.clip.checkpoint"
            ) from error
    network.eval().requires_grad_(False)
    size = network.visual.image_size
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise ValueError(f"CLIP model {model} takes images of {width} x {height}; only square ones are supported")
    return ClipModel(network, transform, tokenize, place, height)


def image_features(model: ClipModel, images: Sequence[Pixels], size: int) -> NDArray[np.float32]:
    """Return the normalized features [N, D] of at most `size` images.

    The forward pass always has `size` rows, filled up: another shape may take another kernel, and give other bits.
    """
    import torch

    inputs = torch.zeros(size, 3, model.image_size, model.image_size)
    for row, pixels in enumerate(images):
        inputs[row] = model.transform(Image.fromarray(pixels))
    with torch.inference_mode():
        found = model.network.encode_image(inputs.to(model.device), normalize=True)
    return np.asarray(found[: len(images)].float().cpu().numpy())


def text_features(model: ClipModel, captions: Sequence[str], size: int) -> NDArray[np.float32]:
    """Return the normalized features [N, D] of at most `size` captions, in a forward pass of `size` rows."""
    import torch

    tokens = model.tokenize([*captions, *[""] * (size - len(captions))])
    with torch.inference_mode():
        found = model.network.encode_text(tokens.to(model.device), normalize=True)
    return np.asarray(found[: len(captions)].float().cpu().numpy())


@contextlib.contextmanager
def one_torch_thread() -> Iterator[None]:
    """Run torch on one thread: sums of one order give the same bits, and the engine runs a process for each core."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def read_model_config(found: ClipFiles) -> dict[str, Any]:
    """Return {model_cfg, preprocess_cfg} for a name of open_clip or a JSON file in either of its two forms."""
    model = found.config or found.name
    config = _read_json(found.config) if found.config else _named_config(found.name)
    config = config if "model_cfg" in config else {"model_cfg": config}
    parts = config["model_cfg"]
    if not isinstance(parts, dict) or not all(
        isinstance(parts.get(name), kind)
        for name, kind in (("embed_dim", int), ("vision_cfg", dict), ("text_cfg", dict))
    ):
        raise ValueError(f"CLIP model {model}: not an open_clip config (it needs embed_dim, vision_cfg, text_cfg)")
    elsewhere = {"hf_model_name"} if found.tokenizer else {"hf_model_name", "hf_tokenizer_name"}
    asked = sorted(elsewhere & set(parts["text_cfg"]))
    if asked:
        raise ValueError(
            f"CLIP model {model} needs files of the Hugging Face hub ({', '.join(asked)}), and nothing is downloaded "
            "here; take a model with open_clip's own tokenizer, or local-dir:FOLDER that holds tokenizer.json"
        )
    given = parts["text_cfg"].get("tokenizer_kwargs", {})
    if not isinstance(given, dict) or set(given) - TOKENIZER_SETTINGS:
        raise ValueError(
            f"CLIP model {model}: tokenizer_kwargs may hold {', '.join(sorted(TOKENIZER_SETTINGS))}, got "
            f"{one_line(str(given))[:200]}; others may run code or read files of the Hugging Face hub"
        )
    return {"model_cfg": parts, "preprocess_cfg": config.get("preprocess_cfg", {})}


def _named_config(name: str) -> dict[str, Any]:
    import open_clip

    if ":" in name:
        raise ValueError(
            f"CLIP model {name!r}: expected a name of open_clip, a .json file, a folder, local-dir:FOLDER or "
            "hf-hub:ORG/NAME; nothing is downloaded"
        )
    config: dict[str, Any] | None = open_clip.get_model_config(name.replace("/", "-"))
    if config is None:
        raise ValueError(f"open_clip knows no model {name!r}; see open_clip.list_models(), or give a .json file")
    return config


def read_tensors(data: bytes) -> dict[str, Any]:
    """Return the tensors of a torch file by name. Raises pickle.UnpicklingError if it holds other things."""
    import io

    import torch

    found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    found = found.get("state_dict", found) if isinstance(found, dict) else found
    if not isinstance(found, dict):
        raise ValueError(f"expected named tensors, got {type(found).__name__}")
    return {str(name): value.float().numpy() for name, value in found.items() if isinstance(value, torch.Tensor)}


def _read_json(url: str) -> dict[str, Any]:
    try:
        if files.size_of(url) > MAX_MODEL_CONFIG_BYTES:
            raise ValueError(f"over {MAX_MODEL_CONFIG_BYTES} bytes")
        config = json.loads(files.read_bytes(url))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"CLIP model config {url} cannot be read: {_first_line(error)}") from error
    if not isinstance(config, dict):
        raise ValueError(f"CLIP model config {url}: expected a mapping, got {type(config).__name__}")
    return config


# What torch, safetensors and open_clip raise on files that are damaged or of another model.
_LOAD_ERRORS = (
    RuntimeError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    AssertionError,
    OSError,
    EOFError,
    pickle.UnpicklingError,
)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def _place(device: str) -> str:
    import torch

    available = torch.cuda.is_available()
    if device == "cuda" and not available:
        raise ValueError("annotate.clip.device is cuda, but there is no CUDA device here; say auto or cpu")
    return "cuda" if available and device != "cpu" else "cpu"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep open_clip's remarks on the root logger (it logs each step of loading) out of ours."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)
