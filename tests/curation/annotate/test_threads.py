"""Threads: in order, bounded, gone at the end; libraries run on one."""

import itertools
import threading
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from threadpoolctl import threadpool_info

from headrace.curation.annotate import unit as unit_module
from headrace.curation.annotate.annotators.unsafe_text import UnsafeTextConfig
from headrace.curation.annotate.threads import map_ahead, one_ahead, one_thread_each, spare_threads
from headrace.curation.stages import annotate as run_annotate


def own_threads():
    return {path.name for path in Path("/proc/self/task").iterdir()}


def test_results_come_in_order_and_no_more_than_the_budget_is_held():
    held, most, lock = [0], [0], threading.Lock()

    def work(number):
        time.sleep(0.001 * (number % 5))
        return number

    def sized():
        for number in range(60):
            with lock:
                held[0] += 10
                most[0] = max(most[0], held[0])
            yield number, 10

    found = []
    for number in map_ahead(work, sized(), threads=4, budget=50):
        found.append(number)
        with lock:
            held[0] -= 10
    assert found == list(range(60))
    assert most[0] <= 50 + 20  # one asked for, one in the hand of who takes it
    assert list(map_ahead(work, ((number, 100) for number in range(9)), threads=4, budget=50)) == list(range(9))


@pytest.mark.parametrize("stop", [0, 3, None])
def test_nothing_is_left_running_and_errors_arrive_in_their_place(stop):
    before = set(threading.enumerate())

    def items():
        yield from range(5)
        raise ValueError("the sixth")

    taken = []
    ahead = one_ahead(items())
    if stop is None:
        with pytest.raises(ValueError, match="the sixth"):
            taken.extend(ahead)
    else:
        taken = list(itertools.islice(ahead, stop))
        ahead.close()
    assert taken == list(range(5 if stop is None else stop))
    with pytest.raises(ZeroDivisionError):
        list(map_ahead(lambda number: 1 // number, ((number, 1) for number in (1, 0, 1)), threads=3, budget=9))
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize(("units", "workers", "expected"), [(1, 0, 8), (3, 0, 2), (100, 0, 1), (100, 2, 4), (1, 2, 8)])
def test_cores_that_no_unit_uses_decode_ahead(units, workers, expected, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)))
    assert spare_threads(units, workers) == expected


def test_values_do_not_depend_on_how_many_threads_decode(make_recipe, annotation_files, monkeypatch):
    made = []
    for threads in (1, 3):
        monkeypatch.setattr("headrace.curation.annotate.stage.spare_threads", lambda *_, threads=threads: threads)
        recipe = make_recipe(f"threads-{threads}", shards=2, unsafe_text=UnsafeTextConfig())
        run_annotate(recipe)
        made.append(annotation_files(recipe))
    assert made[0] == made[1]


def test_the_pools_of_libraries_are_one_thread_each_while_a_unit_runs():
    torch = pytest.importorskip("torch")
    before = cv2.getNumThreads(), torch.get_num_threads()
    cv2.setNumThreads(4)
    torch.set_num_threads(3)
    image = np.random.default_rng(0).integers(0, 255, (900, 1200, 3), np.uint8)
    with one_thread_each(torch=True):
        start = own_threads()
        cv2.GaussianBlur(cv2.resize(image, (2400, 1800)), (31, 31), 9)
        torch.nn.functional.conv2d(torch.rand(4, 3, 128, 128), torch.rand(8, 3, 5, 5))
        np.ones((500, 500)) @ np.ones((500, 500))
        assert own_threads() <= start  # of other tests some may end
        assert (cv2.getNumThreads(), torch.get_num_threads()) == (1, 1)
        assert {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"} <= {1}
    assert (cv2.getNumThreads(), torch.get_num_threads()) == (4, 3)
    cv2.setNumThreads(before[0])
    torch.set_num_threads(before[1])


def test_a_unit_runs_in_that_way(make_recipe, monkeypatch):
    seen = []
    through = unit_module._table
    monkeypatch.setattr(unit_module, "_table", lambda *args: seen.append(cv2.getNumThreads()) or through(*args))
    run_annotate(make_recipe(shards=1))
    assert set(seen) == {1}
