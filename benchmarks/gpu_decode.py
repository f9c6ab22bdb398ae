"""Images a second that a CUDA device decodes: decoder `dali` over shares of the hardware and threads, and its peers.

Every cell is `--seconds` long, two calls at a time, batches of `--batch`. `bare` is the decoder alone, its bytes in
memory: RandomResizedCrop 224 and flip, squares on the device. `stream` is `open_stream(device="cuda")` as a consumer
sees it that does nothing else. Peers: `turbo` with all cores, its squares copied to the device, and
torchvision's `decode_jpeg(device="cuda")`, which decodes whole pictures and crops nothing. `--budget-seconds` shortens
the cells until all of them fit, building pipelines included, and leaves out those that do not. Without a CUDA device it
says so and measures nothing.

    python benchmarks/gpu_decode.py [--photos TAR] [--seconds 2] [--loads 0 0.5 1] [--threads 4 16] [--json OUT]
"""

import argparse
import json
import os
import resource
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

LOADS, THREADS = (0.0, 0.1, 0.25, 0.5, 0.65, 0.9, 1.0), (2, 4, 8, 16)
MADE, COPIES = 128, 8
START_SECONDS, BUILD_SECONDS, LEAST_SECONDS, OTHER_CELLS = 40.0, 2.5, 0.5, 7
LEAST_STREAM_SECONDS = 2.0
SIDE = 224
ASKED_FOR = (1.0, 0.65)
"""Our default and DALI's: measured first, should time run out."""
CORES = len(os.sched_getaffinity(0))

Row = dict[str, Any]
Call = Callable[[int], None]
"""(number of the batch) -> its squares are on the device."""


def main() -> None:
    """Measure every cell, print the table, write it."""
    arguments = _arguments()
    device = _device()
    if not device:
        print("no CUDA device here: nothing is measured")
        return
    begun = time.monotonic()
    files = photographs(arguments.photos)
    print(
        f"{len(files)} photographs, {sum(map(len, files)) // len(files)} bytes each; {device}, {CORES} cores",
        flush=True,
    )
    if arguments.budget_seconds:
        num_dali = len(arguments.loads) * len(arguments.threads)
        spare = arguments.budget_seconds - START_SECONDS - BUILD_SECONDS * num_dali
        arguments.seconds = max(LEAST_SECONDS, spare / (num_dali + OTHER_CELLS))
    spoilt = [faults(files, load) for load in sorted({min(arguments.loads), max(arguments.loads)})]
    for found in spoilt:
        load, answers = found["hw_decoder_load"], found["as_turbo"]
        print(f"spoilt JPEGs answered as turbo does, hw_decoder_load {load}: {answers}", flush=True)
    print("| what | hw_decoder_load | threads | images/s | cores busy |\n| --- | --- | --- | --- | --- |", flush=True)
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder:
        for what, keys, measure in _cells(files, arguments, Path(folder)):
            if _is_over(arguments, begun):
                rows.append({"what": what, **keys, "failed": "left out, no time"})
                show(rows[-1])
                continue
            try:
                images, cores = measure()
                row: Row = {"what": what, **keys, "images_per_s": images, "cores_busy": cores}
            except (ImportError, RuntimeError, ValueError) as error:
                row = {"what": what, **keys, "failed": " ".join(str(error).split())[:300]}
            rows.append(row)
            show(row)
    if arguments.json:
        facts = {"device": device, "cores": CORES, "seconds": arguments.seconds, "batch": arguments.batch}
        Path(arguments.json).write_text(json.dumps({**facts, "rows": rows, "spoilt": spoilt}, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", metavar="TAR", help="photographs: a tar of JPEGs; some are made if none is given")
    parser.add_argument("--budget-seconds", type=float, default=0.0, help="for everything; instead of --seconds")
    parser.add_argument("--seconds", type=float, default=2.0, help="that each cell is measured")
    parser.add_argument("--batch", type=int, default=256, help="pictures in a call and in a batch of the stream")
    parser.add_argument("--loads", type=float, nargs="*", default=LOADS, help="shares of the hardware decoder")
    parser.add_argument("--threads", type=int, nargs="*", default=THREADS, help="threads of DALI")
    parser.add_argument("--json", metavar="OUT", help="write all rows to this file")
    return parser.parse_args()


def _is_over(arguments: argparse.Namespace, begun: float) -> bool:
    left = begun + arguments.budget_seconds - time.monotonic()
    return bool(arguments.budget_seconds) and left < arguments.seconds + BUILD_SECONDS


def _device() -> str:
    try:
        import torch
    except ImportError:
        return ""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def photographs(tar: str | None) -> list[bytes]:
    """Return the JPEGs of a tar; without one, pictures whose detail falls with its frequency as a photograph's does."""
    if tar is None:
        return made(MADE)
    files = []
    with tarfile.open(tar) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.name.lower().endswith((".jpg", ".jpeg")) else None
            if file is not None:
                files.append(file.read())
    if not files:
        raise SystemExit(f"{tar}: no member is called .jpg or .jpeg; give a tar of photographs")
    return files


def made(count: int) -> list[bytes]:
    """Return JPEGs of 500 x 375 pixels and some 90 kB, every second 4:2:0, the others 4:4:4."""
    import cv2

    rng, files = np.random.default_rng(0), []
    for number in range(count):
        pixels = np.full((375, 500, 3), 64, np.float32)
        for scale in (4, 8, 16, 32, 64, 128, 256):
            noise = rng.normal(0, 1, (375 * scale // 256 + 2, 500 * scale // 256 + 2, 3)).astype(np.float32)
            pixels += cv2.resize(noise, (500, 375), interpolation=cv2.INTER_CUBIC) * (60 / scale**0.6)
        sampling = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420 if number % 2 else cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
        options = [cv2.IMWRITE_JPEG_QUALITY, 92, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
        files.append(cv2.imencode(".jpg", np.clip(pixels * 2, 0, 255).astype(np.uint8), options)[1].tobytes())
    return files


Cell = tuple[str, Row, Callable[[], tuple[float, float]]]


def _cells(files: list[bytes], arguments: argparse.Namespace, folder: Path) -> Iterator[Cell]:
    """Yield what is measured: its name, its settings, and the measurement; what is asked for most comes first."""
    seconds, batch, most = arguments.seconds, arguments.batch, max(arguments.threads)
    none = {"hw_decoder_load": None, "threads": None}
    yield "torchvision, whole pictures", none, lambda: run(torchvision_calls(files, batch), seconds)
    for load in sorted({min(arguments.loads), max(arguments.loads)}):
        settings = {"hw_decoder_load": load, "threads": most}
        calls = partial(nvimgcodec_calls, files, batch, **settings)
        yield "nvImageCodec, the windows, not resized", settings, lambda calls=calls: run(calls(), seconds)  # type: ignore[misc]
    yield "bare turbo", {**none, "threads": CORES}, lambda: run(turbo_calls(files, batch), seconds, workers=1)
    write(files, folder)
    long = max(seconds, LEAST_STREAM_SECONDS)
    yield "stream, turbo", {**none, "threads": CORES}, partial(stream, folder, batch, long, decoder="turbo")
    for load in sorted({min(arguments.loads), max(arguments.loads)}):
        keys = {"decoder": "dali", "hw_decoder_load": load, "decode_threads": most}
        settings = {"hw_decoder_load": load, "threads": most}
        yield "stream, dali", settings, partial(stream, folder, batch, long, **keys)
    for threads in sorted(arguments.threads, reverse=True):
        for load in sorted(arguments.loads, key=lambda load: (load not in ASKED_FOR, -load)):
            settings = {"hw_decoder_load": load, "threads": threads}
            yield "bare dali", settings, partial(bare_dali, files, batch, seconds, **settings)


def run(call: Call, seconds: float, *, workers: int = 2) -> tuple[float, float]:
    """Call in `workers` threads for so long; return images a second and how many cores were busy."""
    with ThreadPoolExecutor(workers) as pool:  # what is made at first is not measured
        batch = max(pool.map(partial(_size, call), range(workers)))
        images, lock = 0, threading.Lock()
        begun, cpu = time.perf_counter(), _cpu_seconds()

        def work(first: int) -> None:
            nonlocal images
            number = first
            while time.perf_counter() - begun < seconds:
                call(number)
                number += workers
                with lock:
                    images += batch

        list(pool.map(work, range(workers)))
        took = time.perf_counter() - begun
    return images / took, (_cpu_seconds() - cpu) / took


def _size(call: Call, number: int) -> int:
    call(number)
    return int(call.batch)  # type: ignore[attr-defined]


def _cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _mixture(**keys: Any) -> Any:
    from headrace.pipeline import Mixture, Source

    return Mixture(sources=(Source(name="photographs", url="none"),), image_size=SIDE, **keys)


class DecoderCalls:
    """Calls of a decoder of ours: items, windows, squares where its batches lie."""

    def __init__(self, decoder: Any, mixture: Any, files: list[bytes], batch: int) -> None:
        from headrace.pipeline.augment.views import view_windows
        from headrace.pipeline.decode.gate import admit

        self.batch = batch
        self.decoder = decoder
        self._windows = view_windows(mixture)
        self._files = [(data, admit(data, orientation=1, max_pixels=1 << 26)) for data in files]

    def __call__(self, number: int) -> None:
        self.decode(range(self.batch), number, self.decoder.empty(self.batch, [SIDE]))

    def decode(self, rows: Any, number: int, views: Any) -> None:
        """Decode some rows of a batch."""
        from headrace.pipeline.decode.decoder import Item

        first = number * self.batch
        items = [Item(*self._files[(first + row) % len(self._files)], first + row, row) for row in rows]
        if any(self.decoder.decode(items, self._windows, views)):
            raise ValueError("a photograph did not decode")

    def answers(self) -> list[str]:
        """Decode the first batch one picture a row; return what is said of each, empty for those that decode."""
        from headrace.pipeline.decode.decoder import Item

        items = [Item(*self._files[row], row, row) for row in range(self.batch)]
        views = self.decoder.empty(self.batch, [SIDE])
        return [str(answer or "") for answer in self.decoder.decode(items, self._windows, views)]


def bare_dali(
    files: list[bytes], batch: int, seconds: float, *, hw_decoder_load: float, threads: int
) -> tuple[float, float]:
    """Measure the decoder alone."""
    from headrace.pipeline.decode.dali import Dali

    mixture = _mixture(hw_decoder_load=hw_decoder_load, decode_threads=threads)
    decoder = Dali.for_device(mixture, "cuda:0")
    try:
        return run(DecoderCalls(decoder, mixture, files, batch), seconds, workers=decoder.calls_at_once)
    finally:
        decoder.close()


def faults(files: list[bytes], load: float) -> Row:
    """Spoil photographs in ways that only a decoder sees; count how many answers of `dali` are those of `turbo`."""
    from headrace.pipeline.decode.dali import Dali
    from headrace.pipeline.decode.turbo import Turbo

    mixture = _mixture(hw_decoder_load=load, decode_threads=4)
    rng = np.random.default_rng(0)
    ours, theirs = Dali.for_device(mixture, "cuda:0"), Turbo(mixture)
    found = {}
    for kind in ("cut, with an end", "zeros to the end", "flipped bits", "bytes left out"):
        spoilt = [_spoilt(data, kind, rng) for data in files[:48]]
        answers = [DecoderCalls(decoder, mixture, spoilt, len(spoilt)).answers() for decoder in (ours, theirs)]
        same = sum(one == two for one, two in zip(*answers, strict=True))
        found[kind] = f"{same} of {len(spoilt)} ({sum(map(bool, answers[1]))} refused by turbo)"
    ours.close()
    return {"hw_decoder_load": load, "as_turbo": found}


def _spoilt(data: bytes, kind: str, rng: np.random.Generator) -> bytes:
    place = int(rng.integers(data.index(b"\xff\xda") + 20, len(data) - 80))
    if kind == "cut, with an end":
        return data[:place] + b"\xff\xd9"
    if kind == "zeros to the end":
        return data[:place] + bytes(len(data) - place - 2) + b"\xff\xd9"
    if kind == "flipped bits":
        return data[:place] + bytes(byte ^ 0x55 for byte in data[place : place + 30]) + data[place + 30 :]
    return data[:place] + data[place + 50 :]


def turbo_calls(files: list[bytes], batch: int) -> Call:
    """Return calls of turbo in all cores, into pinned memory, copied to the device."""
    import torch

    from headrace.pipeline.decode.turbo import Turbo

    mixture = _mixture(decode_threads=CORES)
    calls = DecoderCalls(Turbo.for_device(mixture, "cuda:0"), mixture, files, batch)
    pool = ThreadPoolExecutor(CORES)

    def call(number: int) -> None:
        views = calls.decoder.empty(batch, [SIDE])
        list(pool.map(lambda row: calls.decode([row], number, views), range(batch)))
        torch.from_numpy(views[0]).to("cuda", non_blocking=True)
        torch.cuda.synchronize()

    call.batch = batch  # type: ignore[attr-defined]
    return call


def torchvision_calls(files: list[bytes], batch: int) -> Call:
    """Return calls of torchvision's decoder."""
    import torch
    from torchvision.io import decode_jpeg

    tensors = [torch.frombuffer(bytearray(data), dtype=torch.uint8) for data in files]

    def call(number: int) -> None:
        decode_jpeg([tensors[(number * batch + row) % len(tensors)] for row in range(batch)], device="cuda")
        torch.cuda.synchronize()

    call.batch = batch  # type: ignore[attr-defined]
    return call


def nvimgcodec_calls(files: list[bytes], batch: int, *, hw_decoder_load: float, threads: int) -> Call:
    """Return calls of nvImageCodec, which answers None for a picture that it cannot read: one decoder a thread."""
    import torch
    from nvidia import nvimgcodec

    from headrace.pipeline.augment.views import view_windows
    from headrace.shards.images.header import read_header

    (choose,) = view_windows(_mixture())
    sizes = [(header.height, header.width) for header in map(read_header, files)]
    kinds, own = nvimgcodec.BackendKind, threading.local()
    backends = [nvimgcodec.Backend(kind) for kind in (kinds.HYBRID_CPU_GPU, kinds.GPU_ONLY, kinds.CPU_ONLY)]
    if hw_decoder_load:
        backends.insert(0, nvimgcodec.Backend(kinds.HW_GPU_ONLY, load_hint=hw_decoder_load))

    def stream_of(position: int) -> Any:
        number = position % len(files)
        top, left, height, width = choose(position, *sizes[number])[:4]
        region = nvimgcodec.Region(top, left, top + height, left + width)
        return nvimgcodec.CodeStream(files[number]).get_sub_code_stream(region=region)

    def call(number: int) -> None:
        if not hasattr(own, "decoder"):
            own.decoder = nvimgcodec.Decoder(device_id=0, max_num_cpu_threads=threads, backends=backends)
        params = nvimgcodec.DecodeParams(apply_exif_orientation=False)
        found = own.decoder.decode([stream_of(number * batch + row) for row in range(batch)], params=params)
        torch.cuda.synchronize()
        if any(picture is None for picture in found):
            raise ValueError("a photograph did not decode")

    call.batch = batch  # type: ignore[attr-defined]
    return call


def write(files: list[bytes], folder: Path) -> None:
    """Write the photographs as a dataset, several times over."""
    from headrace.shards.write import Sample, finish_dataset, write_shard

    for copy in range(COPIES):
        samples = [Sample(f"{copy}-{number:06d}", data, "jpg", {"label": 0}) for number, data in enumerate(files)]
        write_shard(str(folder), f"{copy:05d}", samples)
    finish_dataset(str(folder), recipe_digest="benchmark")


def stream(folder: Path, batch: int, seconds: float, **keys: Any) -> tuple[float, float]:
    """Measure what a consumer gets that only waits until each batch is on the device."""
    import torch

    from headrace.pipeline import Mixture, Source, open_stream

    source = Source(name="photographs", url=str(folder), chunk_samples=32, shuffle_window=512)
    mixture = Mixture(sources=(source,), lanes=4, image_size=SIDE, index_cache="none", **keys)
    with open_stream(mixture, global_batch=batch, device="cuda") as opened:
        for _ in range(24):  # the first 16 batches read less than whole chunks
            next(opened)
        images, begun, cpu = 0, time.perf_counter(), _cpu_seconds()
        while (took := time.perf_counter() - begun) < seconds:
            torch.as_tensor(next(opened).images).to("cuda", non_blocking=True)
            torch.cuda.synchronize()
            images += batch
    return images / took, (_cpu_seconds() - cpu) / took


def show(row: Row) -> None:
    """Print one row."""
    settings = " | ".join("" if row[name] is None else str(row[name]) for name in ("hw_decoder_load", "threads"))
    found = f"failed: {row['failed']} |" if "failed" in row else f"{row['images_per_s']:.0f} | {row['cores_busy']:.1f}"
    print(f"| {row['what']} | {settings} | {found} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
