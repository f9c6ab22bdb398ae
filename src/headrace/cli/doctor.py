"""`headrace doctor`: what this machine has of what headrace can use."""

import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Annotated, Literal, get_args

import typer

from headrace.cli.result import say_next

# A stream keeps a file open for each reader, a fetch one for each connection; below this both come to the limit.
WANTED_OPEN_FILES = 4096

# The smallest image of each kind that a decoder may lack: what Pillow was built with differs between machines.
FORMATS = ("PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")

Verdict = Literal["ok", "absent", "warning", "broken"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report."""

    group: str
    name: str
    verdict: Verdict
    """`absent`: not installed, and nothing needs it; `broken`: headrace cannot work like this."""
    text: str


def doctor_command(
    folder: Annotated[str, typer.Argument(help="The folder whose free space is shown: where jobs will lie.")] = ".",
    json: Annotated[bool, typer.Option("--json", help="Print JSON: one list with an object a line.")] = False,
) -> None:
    """Say what is installed, which decoders and devices work, threads, memory, free disk and file limits.

    Exit code 1 if something that every command needs is broken.

    Example: headrace doctor /data
    """
    import json as json_module

    findings = list(examine(folder))
    if json:
        print(json_module.dumps([asdict(finding) for finding in findings], indent=1))
    else:
        width = max(len(finding.name) for finding in findings)
        group = ""
        for finding in findings:
            if finding.group != group:
                group = finding.group
                print(group)
            print(f"  {finding.name:<{width}}  {finding.verdict:<7}  {finding.text}")
        counts = Counter(finding.verdict for finding in findings)
        print(", ".join(f"{counts[verdict]} {verdict}" for verdict in get_args(Verdict)))
        if not counts["broken"]:
            say_next(["headrace", "demo"])
    if any(finding.verdict == "broken" for finding in findings):
        raise typer.Exit(1)


def examine(folder: str) -> Iterator[Finding]:
    """Yield the findings, group by group."""
    yield from _packages()
    yield from _decoders()
    yield from _devices()
    yield from _machine(folder)
    yield from _extensions()


def _packages() -> Iterator[Finding]:
    from headrace import __version__

    yield Finding("packages", "headrace", "ok", f"{__version__}, Python {sys.version.split()[0]}")
    for extra, needs in _requirements().items():
        held = {name: _version(name) for name in needs}
        absent = [name for name, version in held.items() if version is None]
        text = ", ".join(f"{name} {version}" for name, version in held.items() if version is not None)
        if not absent:
            yield Finding("packages", extra or "core", "ok", text)
        elif extra:
            yield Finding("packages", extra, "absent", f"pip install 'headrace[{extra}]' (no {', '.join(absent)})")
        else:
            yield Finding("packages", "core", "broken", f"not installed: {', '.join(absent)}; install headrace again")


def _requirements() -> dict[str, list[str]]:
    """Return extra -> its packages, as the installed package says; the core's extra is the empty string."""
    import re
    from importlib import metadata

    found: dict[str, list[str]] = {"": []}
    for line in metadata.requires("headrace") or ():
        name = re.match(r"[A-Za-z0-9._-]+", line)
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", line)
        if ";" in line and extra is None and name is not None and _version(name[0]) is None:
            continue  # of this platform there is none, and the core does without
        if name is not None and name[0] != "headrace":
            found.setdefault(extra[1] if extra else "", []).append(name[0])
    return {extra: needs for extra, needs in found.items() if extra not in ("dev", "docs")}


def _version(package: str) -> str | None:
    from importlib import metadata

    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _decoders() -> Iterator[Finding]:
    import numpy as np
    import simplejpeg

    from headrace.shards.images.area import describe_shrinker
    from headrace.shards.images.decode import decode_rgb

    pixels = np.zeros((16, 16, 3), np.uint8)
    yield _decodes("JPEG", lambda: decode_rgb(simplejpeg.encode_jpeg(pixels)), "simplejpeg (libjpeg-turbo)")
    yield from _stream_decoding()
    slow = describe_shrinker().startswith("NumPy")
    yield Finding("decoders", "fetch's resizing", "absent" if slow else "ok", describe_shrinker())
    for name in FORMATS:
        yield _decodes(name, lambda name=name: decode_rgb(_encoded(name)), _pillow())  # type: ignore[misc]


def _stream_decoding() -> Iterator[Finding]:
    from headrace.pipeline.decode.region import describe_jpeg_decoder, region_fault
    from headrace.pipeline.decode.resize import describe_resizer, fast_fault

    verdict: Verdict = "absent" if region_fault() else "ok"
    yield Finding("decoders", "stream's JPEG", verdict, describe_jpeg_decoder())
    yield Finding("decoders", "stream's resizer", "absent" if fast_fault() else "ok", describe_resizer())
    yield _dali()


def _dali() -> Finding:
    from headrace.cli.decoders import cuda_device
    from headrace.pipeline.decode import dali_fault, describe_decoding

    device = cuda_device()
    fault = dali_fault(device or "cpu")
    where = f"; decoder auto is {'turbo' if fault else 'dali'} on {device}" if device else "; decoder auto is turbo"
    if not fault:
        return Finding("decoders", "stream's DALI", "ok", describe_decoding("dali") + where)
    return Finding(
        "decoders", "stream's DALI", "absent" if fault.startswith("not installed") else "warning", fault + where
    )


def _encoded(name: str) -> bytes:
    import io

    from PIL import Image

    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, name)
    return file.getvalue()


def _decodes(name: str, decode: Callable[[], object], by: str) -> Finding:
    try:
        decode()
    except (ValueError, OSError, KeyError) as error:  # KeyError: Pillow was built without this format
        verdict: Verdict = "broken" if name in ("JPEG", "PNG") else "warning"
        return Finding("decoders", name, verdict, f"{by} cannot: {error or type(error).__name__}")
    return Finding("decoders", name, "ok", by)


def _pillow() -> str:
    import PIL

    version = PIL.__version__
    return f"pillow-simd {version}" if ".post" in version else f"pillow {version}"


def _devices() -> Iterator[Finding]:
    try:
        import torch
    except ImportError as error:
        yield Finding("devices", "torch", "absent", f"no training here: {error}")
        return
    if not torch.cuda.is_available():
        yield Finding("devices", "CUDA", "absent", f"torch {torch.__version__} sees no CUDA device; it trains on CPUs")
        return
    for number in range(torch.cuda.device_count()):
        facts = torch.cuda.get_device_properties(number)
        yield Finding("devices", f"cuda:{number}", "ok", f"{facts.name}, {facts.total_memory >> 30} GiB")


def _machine(folder: str) -> Iterator[Finding]:
    import resource
    from pathlib import Path

    threads = len(os.sched_getaffinity(0))
    yield Finding("machine", "threads", "ok", f"{threads} of {os.cpu_count()} may be used by this process")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    yield Finding("machine", "memory", "ok", f"{memory / 2**30:.1f} GiB")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    few = soft != resource.RLIM_INFINITY and soft < WANTED_OPEN_FILES
    advice = f"; ulimit -n {WANTED_OPEN_FILES} before a fetch or many shards" if few else ""
    yield Finding("machine", "open files", "warning" if few else "ok", f"{soft} (at most {hard}){advice}")
    path = Path(folder)
    if not path.is_dir():
        raise ValueError(f"{folder}: no such folder; name one that is there")
    free, total = shutil.disk_usage(path).free, shutil.disk_usage(path).total
    writable = os.access(path, os.W_OK)
    text = f"{free / 1e9:.1f} GB free of {total / 1e9:.1f} in {folder}" + ("" if writable else ", not writable")
    yield Finding("machine", "disk", "ok" if writable else "warning", text)


def _extensions() -> Iterator[Finding]:
    from headrace.extensions import KINDS, installed

    try:
        found = installed()
    except ValueError as error:
        yield Finding("extensions", "extensions", "broken", str(error))
        return
    if not found:
        yield Finding("extensions", "none", "ok", "no other package adds anything")
    for point, extension in found.items():
        added = [f"{kind}: {', '.join(getattr(extension, kind))}" for kind in KINDS if getattr(extension, kind)]
        yield Finding("extensions", point, "ok", "; ".join(added))
