"""Which files a CLIP model is: for the digest, and for loading it. Nothing is loaded and nothing is downloaded here.

A model is named four ways: a name of open_clip, or a config file, each with a checkpoint; a folder as open_clip's
`local-dir:` and `headrace train` write it; a model of the Hugging Face hub that lies in this machine's cache.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

CONFIG_NAMES = ("open_clip_config.json", "model_config.json")
WEIGHT_NAMES = (
    *("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors"),
    *("open_clip_pytorch_model.bin", "model.pt", "model.pth"),
)
"""In the order in which they are looked for: those without pickle first."""
TOKENIZER_NAMES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "spiece.model", "sentencepiece.bpe.model", "tokenizer.model"),
)
LOCAL, HUB = "local-dir:", "hf-hub:"


@dataclass(frozen=True, slots=True)
class ClipFiles:
    """A model as files: `name` is a name of open_clip, empty where `config` is a file."""

    name: str
    config: str
    checkpoint: str
    tokenizer: Mapping[str, str] = field(default_factory=dict)
    """Name -> path of the files of a tokenizer of Hugging Face's; empty: open_clip's own."""

    def roles(self) -> dict[str, str]:
        """Return role -> path of what the digest is taken of."""
        return {**({"model": self.config} if self.config else {}), "checkpoint": self.checkpoint, **self.tokenizer}


def clip_files(model: str, checkpoint: str) -> ClipFiles:
    """Return the files of a model. Raises ValueError saying what is missing and what to do."""
    # With a checkpoint a plain name is open_clip's, whatever folders lie about.
    named = not checkpoint or model.startswith((LOCAL, HUB))
    folder = _folder(model) if named else None
    if folder is None:
        if not checkpoint:
            raise ValueError(
                f"annotate.clip: model {model!r} needs a `checkpoint`, its weights on this machine; or give a folder "
                "with both, as `headrace train` writes it"
            )
        return ClipFiles("", model, checkpoint) if model.endswith(".json") else ClipFiles(model, "", checkpoint)
    if checkpoint:
        raise ValueError(f"annotate.clip: the folder of {model} holds the weights; leave `checkpoint` out")
    config = _first(folder, CONFIG_NAMES, model)
    weights = _first(folder, WEIGHT_NAMES, model)
    tokenizer = {name: str(folder / name) for name in TOKENIZER_NAMES if (folder / name).is_file()}
    return ClipFiles("", config, weights, tokenizer)


def _folder(model: str) -> Path | None:
    """Return the folder that `model` names; None if it names none."""
    if model.startswith(HUB):
        return _hub_folder(model.removeprefix(HUB))
    named = model.startswith(LOCAL)
    path = Path(model.removeprefix(LOCAL))
    if not named and not path.is_dir():
        return None
    if not path.is_dir():
        raise ValueError(f"CLIP model {model}: there is no such folder; check annotate.clip.model")
    inside = path / "open_clip"  # of a finished run of `headrace train`
    return inside if inside.is_dir() else path


def _first(folder: Path, names: tuple[str, ...], model: str) -> str:
    found = next((folder / name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise ValueError(
            f"CLIP model {model}: {folder} holds none of {', '.join(names)}; give the folder of a finished run of "
            "objective `clip`, or one that open_clip's push_to_hf_hub wrote"
        )
    return str(found)


def _hub_folder(repository: str) -> Path:
    """Return the newest snapshot of a repository in this machine's cache of the hub."""
    from huggingface_hub.constants import HF_HUB_CACHE

    place = Path(HF_HUB_CACHE, f"models--{repository.replace('/', '--')}")
    revision = place / "refs" / "main"
    snapshot = place / "snapshots" / (revision.read_text().strip() if revision.is_file() else "")
    if not revision.is_file() or not snapshot.is_dir():
        raise ValueError(
            f"CLIP model {HUB}{repository} is not in this machine's cache of the Hugging Face hub, and nothing is "
            f"downloaded here: where there is network, run `hf download {repository} --local-dir FOLDER`, and say "
            "local-dir:FOLDER"
        )
    return snapshot
