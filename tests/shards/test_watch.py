"""A read that takes long is named while it does, with what has come; a quick one is not."""

import logging
import time

import pytest

from headrace.patience import Stop
from headrace.shards.watch import SlowReads, UnderWay


def test_a_slow_read_is_named_with_its_bytes_and_then_more_seldom(caplog: pytest.LogCaptureFixture) -> None:
    slow = UnderWay("http://me:secret@host/a.tar", 100, 5000, 10.0)
    slow.tell(1200)
    with caplog.at_level(logging.WARNING):
        for seconds in range(100):
            slow.say_if_late(slow.began + seconds)
    come = "http://me:***@host/a.tar: at byte 100: 1200 of 5000 bytes in {}.0 s; other chunks are read meanwhile"
    assert caplog.messages == [come.format(seconds) for seconds in (10, 20, 40, 80)]


def test_only_a_read_under_way_is_spoken_of_and_no_bytes_are_claimed_that_nobody_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stop = Stop()
    watch = SlowReads(stop, 0.05)
    with caplog.at_level(logging.WARNING):
        watch.reading("http://host/never-begun.tar", 0, 10)
        with watch.reading("s3://bucket/a.tar", 7, 5000):
            end = time.monotonic() + 120
            while "s3://bucket/a.tar: at byte 7: 5000 bytes in " not in caplog.text:
                assert time.monotonic() < end
                time.sleep(0.01)
        assert not watch._under_way
    stop.set()
    watch.close()
    assert all("s3://bucket/a.tar" in message for message in caplog.messages)
