"""A codebook's file is the one that the run says, and the nearest code is the nearest."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from headrace.train.objectives import codebook as module
from headrace.train.objectives.codebook import CodebookConfig, nearest_codes, read_codebook


def write(path: Path, **tensors: torch.Tensor) -> CodebookConfig:
    data = save(tensors)
    path.write_bytes(data)
    return CodebookConfig(path=str(path), size=5, sha256=hashlib.sha256(data).hexdigest())


@given(patches=st.integers(0, 40), codes=st.integers(2, 9), values=st.integers(1, 6), seed=st.integers(0, 99))
def test_the_nearest_code_is_found_by_trying_all(patches: int, codes: int, values: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    # Small whole numbers: sums are exact, so that ties are ties, and the lower code has them.
    found, codebook = rng.integers(-3, 4, (patches, values)), rng.integers(-3, 4, (codes, values))
    code, distance = nearest_codes(torch.from_numpy(found).float(), torch.from_numpy(codebook).float())
    for row, patch in enumerate(found.tolist()):
        distances = [sum((a - b) ** 2 for a, b in zip(patch, one, strict=True)) for one in codebook.tolist()]
        assert (int(code[row]), float(distance[row])) == (distances.index(min(distances)), min(distances))


def test_many_patches_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    patches, codes = torch.randn(100, 12), torch.randn(9, 12)
    whole = nearest_codes(patches, codes)
    monkeypatch.setattr(module, "MAX_DISTANCES", 64)
    assert all(torch.equal(one, other) for one, other in zip(whole, nearest_codes(patches, codes), strict=True))


def test_autocast_does_not_round_distances() -> None:
    patches, codes = torch.randn(200, 48), torch.randn(64, 48)
    with torch.autocast("cpu", torch.bfloat16):
        low = nearest_codes(patches, codes)
    assert all(torch.equal(one, other) for one, other in zip(low, nearest_codes(patches, codes), strict=True))


def test_a_codebook_is_read(tmp_path: Path) -> None:
    codes = torch.randn(5, 12)
    assert torch.equal(read_codebook(write(tmp_path / "a.safetensors", codebook=codes), 12), codes)


def test_another_file_is_refused(tmp_path: Path) -> None:
    config = write(tmp_path / "a.safetensors", codebook=torch.randn(5, 12))
    with pytest.raises(ValueError, match=r"it is \[5, 12\], and this run's patches .* need \[5, 48\]"):
        read_codebook(config, 48)
    write(tmp_path / "a.safetensors", codebook=torch.randn(5, 12))
    with pytest.raises(ValueError, match=r"its sha256 is [0-9a-f]{64}, and objective\.codebook\.sha256 says"):
        read_codebook(config, 12)
    with pytest.raises(ValueError, match="has no tensor 'codebook' of finite float32"):
        read_codebook(write(tmp_path / "b.safetensors", other=torch.randn(5, 12)), 12)
    with pytest.raises(ValueError, match="of finite float32"):
        read_codebook(write(tmp_path / "c.safetensors", codebook=torch.full((5, 12), torch.nan)), 12)
    gone = CodebookConfig(path=str(tmp_path / "gone"), size=5, sha256="")
    with pytest.raises(ValueError, match="gone: cannot be read: No such file or directory; headrace codebook makes"):
        read_codebook(gone, 12)
    (tmp_path / "d").write_bytes(b"no tensors")
    broken = CodebookConfig(path=str(tmp_path / "d"), size=5, sha256=hashlib.sha256(b"no tensors").hexdigest())
    with pytest.raises(ValueError, match="no safetensors file"):
        read_codebook(broken, 12)


@pytest.mark.parametrize(
    ("keys", "message"),
    [({"size": 1}, "size must be 2"), ({"path": "s3://a/b"}, "path must be a local file"), ({"path": ""}, "a local")],
)
def test_keys_that_cannot_be_are_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CodebookConfig(**{"path": "a", "size": 5, "sha256": ""} | keys)  # type: ignore[arg-type]
