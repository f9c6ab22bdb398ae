"""How long a training loop stands still for data, timed outside the loader; and what slow pictures cost.

A consumer takes 80 % of the measured ceiling: it sleeps through its share of each step, as a host does while its
device computes. Everything else that it spends in `next` is a stall. Another
job on the machine takes the cores that decode, so each number comes with how busy others kept the machine, and with a
run in which pictures are slept through instead of decoded: what is left there is the loader's own.

    python benchmarks/stall.py imagenet-sample.tar [--steps 2000] [--json OUT]
    python benchmarks/stall.py imagenet-sample.tar --s3 http://127.0.0.1:8080 --key test:tester --secret testing

With --s3 the dataset is put into that store, and read through a proxy that delays each request by 30 ms.
"""

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import fsspec
import numpy as np

from headrace.pipeline import Mixture, Source, Stream, open_stream
from headrace.pipeline.augment.views import ChooseWindow
from headrace.pipeline.ceiling import measure
from headrace.pipeline.decode import DECODERS, Images, Item
from headrace.pipeline.errors import SampleError
from headrace.shards.imports.run import ImportConfig, import_images, open_source

BATCH = 32
SLEEP_SECONDS = 0.01
SLOW_TIMES = 100


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Stalls:
    """What a consumer stood still for."""

    name: str
    ceiling: float
    """Images per second, of a consumer that does nothing."""
    images_per_second: float
    stall_percent: float
    longest_seconds: float
    steps_stalled: int
    """Steps that waited over a millisecond."""
    own_cores: float
    others_cores: float
    """Cores that everybody else on the machine used, on average."""
    said: str
    """The stream's own verdict."""


def main() -> None:
    """Measure each store with pictures that are decoded and with pictures that are slept through."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", help="tar or folder of JPEGs")
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--demand", type=float, default=0.8, help="part of the ceiling that the consumer needs")
    parser.add_argument("--latency-ms", type=float, default=30.0, help="of each request to the store")
    parser.add_argument("--s3", default="", help="endpoint of an S3 store")
    parser.add_argument("--key", default="")
    parser.add_argument("--secret", default="")
    parser.add_argument("--json", default="", help="write the numbers here too")
    arguments = parser.parse_args()
    DECODERS["asleep"] = Asleep
    found: list[Stalls] = []
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        local = str(Path(folder, "dataset"))
        config = ImportConfig(samples_per_shard=75)
        import_images(open_source(arguments.source, config), local, config)
        places = {"local disk": local}
        if arguments.s3:
            place = put(local, arguments.s3, key=arguments.key, secret=arguments.secret)
            proxy = stack.enter_context(delaying(urlsplit(arguments.s3).netloc, arguments.latency_ms / 1000))
            fsspec.config.conf["s3"]["endpoint_url"] = f"http://{proxy}"
            places[f"S3 + {arguments.latency_ms:.0f} ms"] = place
        for name, url in places.items():
            for decoder in ("turbo", "asleep"):
                mixture = mixture_of(url, decoder)
                found.append(stalls(f"{name}, {decoder}", mixture, steps=arguments.steps, demand=arguments.demand))
                show(found[-1])
        slow = {threads: slow_pictures(local, threads) for threads in (8, 32)}
    for threads, (even, uneven) in slow.items():
        print(f"{threads} threads at work: {even:.1%} of the time, {uneven:.1%} where 1 % of pictures is slow")
    if arguments.json:
        rows = [dataclasses.asdict(one) for one in found]
        Path(arguments.json).write_text(json.dumps({"stalls": rows, "slow_pictures": slow}, indent=1))


def mixture_of(url: str, decoder: str) -> Mixture:
    """Return the one source as a mixture; four threads sleep where two cores would decode."""
    source = Source(name="images", url=url, chunk_samples=16, shuffle_window=512)
    return Mixture(lanes=8, decoder=decoder, decode_threads=0 if decoder == "turbo" else 4, sources=(source,))


def stalls(name: str, mixture: Mixture, *, steps: int, demand: float) -> Stalls:
    """Measure the ceiling, then a consumer that needs `demand` of it, from the second batch on."""
    with open_stream(mixture, global_batch=BATCH) as stream:
        ceiling = measure(stream, seconds=8.0).images_per_second
    computing = BATCH / (demand * ceiling)
    with open_stream(mixture, global_batch=BATCH) as stream:
        next(stream)
        time.sleep(computing)
        busy, own, begun = busy_seconds(), time.process_time(), time.perf_counter()
        waits = consume(stream, steps, computing)
        took = time.perf_counter() - begun
        own, busy = time.process_time() - own, busy_seconds() - busy
        stats = stream.stats()
    return Stalls(
        name=name,
        ceiling=ceiling,
        images_per_second=steps * BATCH / took,
        stall_percent=100 * sum(waits) / took,
        longest_seconds=max(waits),
        steps_stalled=sum(wait > 0.001 for wait in waits),
        own_cores=own / took,
        others_cores=max(0.0, busy - own) / took,
        said=f"{stats.bound_by} {stats.advice}",
    )


def consume(stream: Stream, steps: int, computing: float) -> list[float]:
    """Return how long each step waited in `next`."""
    waits = []
    for _ in range(steps):
        begun = time.perf_counter()
        next(stream)
        waits.append(time.perf_counter() - begun)
        time.sleep(computing)
    return waits


def busy_seconds() -> float:
    """Return the core seconds that this machine has worked since it started."""
    user, nice, system, _, _, irq, softirq, steal, *_ = Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]
    return sum(map(int, (user, nice, system, irq, softirq, steal))) / os.sysconf("SC_CLK_TCK")


class Asleep:
    """A decoder that sleeps; one picture in a hundred, for `slow` times as long."""

    items_per_call = 1
    slow = 1

    def __init__(self, mixture: Mixture) -> None:
        self.calls_at_once = mixture.decode_threads

    def empty(self, num_items: int, sizes: Sequence[int]) -> tuple[Images, ...]:
        """Return memory for one batch."""
        return tuple(np.empty((num_items, size, size, 3), np.uint8) for size in sizes)

    def decode(
        self, items: Sequence[Item], windows_per_view: Sequence[ChooseWindow], out: Sequence[Images]
    ) -> list[SampleError | None]:
        """Sleep."""
        assert len(windows_per_view) == len(out)
        time.sleep(sum(self.seconds(item.position) for item in items))
        return [None] * len(items)

    @classmethod
    def seconds(cls, position: int) -> float:
        """Return how long the picture of a position takes."""
        return SLEEP_SECONDS * (cls.slow if position % 100 == 37 else 1)

    def close(self) -> None:
        """Nothing to free."""


def slow_pictures(url: str, threads: int) -> tuple[float, float]:
    """Return the part of the time that threads are at work: all pictures alike, and 1 % of them slow."""
    mixture = dataclasses.replace(mixture_of(url, "asleep"), decode_threads=threads, image_size=32)
    parts = []
    for Asleep.slow in (1, SLOW_TIMES):
        with open_stream(mixture, global_batch=64) as stream:
            for _ in range(10):
                next(stream)
            first, number, begun = stream.position, 10 * threads, time.perf_counter()
            for _ in range(number):
                next(stream)
            took = time.perf_counter() - begun
        work = sum(map(Asleep.seconds, range(first, first + 64 * number)))
        parts.append(work / threads / took)
    Asleep.slow = 1
    return parts[0], parts[1]


def put(folder: str, endpoint: str, *, key: str, secret: str) -> str:
    """Copy a dataset into a bucket of an S3 store and return its URL."""
    fsspec.config.conf["s3"] = {"endpoint_url": endpoint, "key": key, "secret": secret}
    store = fsspec.filesystem("s3", skip_instance_cache=True)
    bucket = f"stall{os.getpid()}"
    store.mkdir(bucket)
    for path in Path(folder).rglob("*"):
        if path.is_file():
            store.put_file(str(path), f"{bucket}/dataset/{path.relative_to(folder)}")
    return f"s3://{bucket}/dataset"


@contextlib.contextmanager
def delaying(upstream: str, seconds: float) -> Iterator[str]:
    """Give the address of a proxy, a process of its own, that holds back what clients send for `seconds`."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=128)
    process = multiprocessing.get_context("fork").Process(target=_forward_all, args=(listener, upstream, seconds))
    process.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        process.terminate()
        process.join()
        listener.close()


def _forward_all(listener: socket.socket, upstream: str, seconds: float) -> None:
    host, _, port = upstream.partition(":")
    while True:
        client, _ = listener.accept()
        server = socket.create_connection((host, int(port)))
        for one in (client, server):
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for source, sink, delay in ((client, server, seconds), (server, client, 0.0)):
            threading.Thread(target=_forward, args=(source, sink, delay), daemon=True).start()


def _forward(source: socket.socket, sink: socket.socket, seconds: float) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 20):
            time.sleep(seconds)
            sink.sendall(data)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


def show(found: Stalls) -> None:
    """Print one line."""
    print(
        f"{found.name:<24} ceiling {found.ceiling:>6.0f}, taken {found.images_per_second:>6.0f} images/s: "
        f"stalled {found.stall_percent:.2f} %, longest {found.longest_seconds:.3f} s, {found.steps_stalled} steps; "
        f"{found.own_cores:.2f} cores, others {found.others_cores:.2f}; {found.said}",
        flush=True,
    )


if __name__ == "__main__":
    main()
