"""The decoder that computes in batches: NVIDIA DALI, on a CUDA device or, with the same pipeline, on the CPU.

Plain JPEGs go through DALI, a part of a batch at once. Everything else, and every picture that DALI refuses, is
decoded by `turbo` in the same call, so the samples that are delivered are those of `turbo`. A corrupt picture costs
itself only: DALI stops the whole run at it, so the CPU judges every picture of that run, and the good ones run again.
"""

import logging
import queue
import re
from collections.abc import Sequence
from typing import Self

from headrace.pipeline.augment.views import ChooseWindow, PlannedView, planned_views
from headrace.pipeline.decode.beside import TurboPool
from headrace.pipeline.decode.cores import own_cores
from headrace.pipeline.decode.dali_feed import PreparedItems, prepare
from headrace.pipeline.decode.dali_pipeline import DaliPipeline, Refusal, Settings, ViewSettings, dali_fault, refusal_of
from headrace.pipeline.decode.decoder import Images, Item
from headrace.pipeline.decode.memory import DeviceMemory, HostMemory, Memory
from headrace.pipeline.decode.plain import is_plain_jpeg
from headrace.pipeline.errors import SampleError
from headrace.pipeline.mixture import Mixture

ITEMS_PER_CALL = 256
CALLS_AT_ONCE = 2
"""One decodes while the windows of the other are chosen and its bytes handed over."""
MOST_RUN_PIXELS = 96 << 20
"""Of the whole pictures of one run: DALI keeps the memory of its largest run, three bytes a pixel and more."""
MOST_BROKEN = 16
"""So many errors in a row that are no picture's are the device's: halving a run down to one picture takes 9.
So are more refusals than this, if they are of all pictures."""
END = b"\xff\xd9"
MAX_REASONS = 16

Answer = SampleError | None

log = logging.getLogger(__name__)


class Dali:
    """NVIDIA DALI: plain JPEGs in batches, on the stream's CUDA device if it has one; the rest by turbo."""

    def __init__(self, mixture: Mixture, *, device: str = "cpu", memory: Memory | None = None) -> None:
        fault = dali_fault(device)
        if fault:
            raise ValueError(f"decoder: dali is {fault}")
        self.items_per_call = ITEMS_PER_CALL
        self.calls_at_once = CALLS_AT_ONCE
        self._memory = memory or HostMemory()
        threads = mixture.decode_threads or own_cores()
        self._settings = Settings(
            views=tuple(map(_settings_of, planned_views(mixture))),
            most_items=ITEMS_PER_CALL,
            threads=threads,
            device=device,
            hw_decoder_load=mixture.hw_decoder_load,
        )
        self._pipelines: queue.SimpleQueue[DaliPipeline] = queue.SimpleQueue()
        self._turbo = TurboPool(mixture, self._memory, threads=threads)
        self._said: set[str] = set()

    @classmethod
    def for_device(cls, mixture: Mixture, device: str) -> Self:
        """Return a decoder whose batches are torch tensors on a CUDA device; on the CPU, numpy arrays."""
        return cls(mixture, device=device, memory=None if device == "cpu" else DeviceMemory(device))

    def empty(self, num_items: int, sizes: Sequence[int]) -> tuple[Images, ...]:
        """Return memory for one batch."""
        return self._memory.empty(num_items, sizes)

    def decode(
        self, items: Sequence[Item], windows_per_view: Sequence[ChooseWindow], out: Sequence[Images]
    ) -> list[Answer]:
        """Decode each item once and write each of its views; it is there, on the device too, when this returns."""
        plain = [number for number, item in enumerate(items) if _is_for_dali(item)]
        others = sorted(set(range(len(items))) - set(plain))
        begun = self._turbo.begin([items[number] for number in others], windows_per_view, out)
        answers: dict[int, Answer] = {}
        for part in _runs([items[number] for number in plain]):
            numbers = plain[part]
            answers |= zip(numbers, self._plain([items[n] for n in numbers], windows_per_view, out), strict=True)
        answers |= zip(others, self._turbo.finish(begun), strict=True)
        return [answers[number] for number in range(len(items))]

    def close(self) -> None:
        """End the threads and free the pipelines."""
        self._turbo.close()
        while not self._pipelines.empty():
            self._pipelines.get()

    def _plain(self, items: Sequence[Item], choose: Sequence[ChooseWindow], out: Sequence[Images]) -> list[Answer]:
        """Decode what fits into one run."""
        prepared = prepare(items, choose, [view.side for view in self._settings.views])
        answers: list[Answer] = [None] * len(items)
        found = self._run(prepared, range(len(items)), out)
        if isinstance(found, Refusal):
            answers = self._turbo.decode(items, choose, out)
            good = [number for number, answer in enumerate(answers) if answer is None]
            found = self._sift(prepared, good, out)
        for number, answer in zip(found, self._turbo.decode([items[n] for n in found], choose, out), strict=True):
            answers[number] = answer
        return answers

    def _sift(self, prepared: PreparedItems, good: list[int], out: Sequence[Images]) -> list[int]:
        """Run what the CPU decodes without those that DALI refuses; return what the CPU must decode.

        Raises RuntimeError if DALI decodes nothing any more.
        """
        doubted, refused, waiting, num_broken = list[int](), list[int](), [good] if good else [], 0
        while waiting:
            part = waiting.pop()
            found = self._run(prepared, part, out)
            if not isinstance(found, Refusal):
                doubted += found
                num_broken = 0
                continue
            num_broken += not found.is_pictures
            place = 0 if len(part) == 1 else found.place
            if place is not None:
                refused.append(part[place])
                waiting += [rest] if (rest := part[:place] + part[place + 1 :]) else []
            else:
                waiting += [part[len(part) // 2 :], part[: len(part) // 2]]
            all_refused = len(refused) == len(good) > (1 if num_broken else MOST_BROKEN)
            if num_broken > MOST_BROKEN or all_refused:
                raise RuntimeError(f"decoder dali decodes nothing on {self._settings.device} any more: {found.text}")
        return doubted + refused

    def _run(self, prepared: PreparedItems, numbers: Sequence[int], out: Sequence[Images]) -> list[int] | Refusal:
        """Decode some items into their rows; return those whose end is in doubt, or why DALI refused them all."""
        feed = prepared.feed.at(numbers) if len(numbers) < len(prepared.feed) else prepared.feed
        try:
            pipeline = self._pipelines.get_nowait()
        except queue.Empty:
            pipeline = DaliPipeline(self._settings)
        try:
            fed = pipeline.run(feed)
        except RuntimeError as error:
            refusal = refusal_of(error, len(numbers))
            self._say(refusal)
            # Behind a picture that cannot be decoded it goes on as before (1,500 times in a row); behind another error
            # its next run may end the process. Building one takes 1.7 s on a CUDA device.
            if refusal.is_pictures:
                self._pipelines.put(pipeline)
            return refusal
        rows, transposed = prepared.rows[numbers], prepared.transposed[numbers]
        for view, pixels in zip(out, fed.squares, strict=True):
            self._memory.write(view, rows, pixels, transposed)
        self._memory.finish()
        self._pipelines.put(pipeline)
        return [numbers[place] for place in prepared.doubts(numbers, fed, repeats=self._settings.device != "cpu")]

    def _say(self, refusal: Refusal) -> None:
        """Say each reason once, whichever picture it names."""
        reason = re.sub(r"#\d+", "#", refusal.text)
        if reason not in self._said and len(self._said) < MAX_REASONS:
            self._said.add(reason)
            log.info("DALI refused a run of pictures, so they are judged one by one: %s", refusal.text)


def _settings_of(view: PlannedView) -> ViewSettings:
    augment = view.augment
    fill = augment.pad_value if augment.fills else None
    return ViewSettings(side=view.image_size, interpolation=augment.interpolation, fill=fill)


def _is_for_dali(item: Item) -> bool:
    # Of a large picture the CPU decodes the part that is needed.
    is_jpeg = item.header.format == "jpeg" and item.data.endswith(END)
    return is_jpeg and not item.is_large and is_plain_jpeg(item.data)


def _runs(items: Sequence[Item]) -> list[slice]:
    """Cut items into runs that DALI's memory stays small for."""
    runs, first, pixels = [], 0, 0
    for number, item in enumerate(items):
        pixels += item.header.height * item.header.width
        if pixels > MOST_RUN_PIXELS and number > first:
            runs.append(slice(first, number))
            first, pixels = number, item.header.height * item.header.width
    return [*runs, slice(first, len(items))] if items else []
