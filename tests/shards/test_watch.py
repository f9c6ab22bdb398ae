"""A read that takes long is named while it does, with what has come; a quick one is not."""

import logging
import time

import pytest

from headrace.patience import Stop
from headrace.shards.watch import SlowReads


def test_a_slow_read_is_named_with_its_bytes_and_then_more_seldom(caplog: pytest.LogCaptureFixture) -> None:
    stop = Stop()
    watch = SlowReads(stop, 0.1)
    with caplog.at_level(logging.WARNING):
        with watch.reading("http://me:secret@host/a.tar", 100, 5000) as slow:
            slow.tell(1200)
            time.sleep(0.9)
        with watch.reading("http://host/quick.tar", 0, 10):
            pass
        time.sleep(0.3)
    stop.set()
    watch.close()
    messages = [record.getMessage() for record in caplog.records]
    assert 2 <= len(messages) <= 4  # after 0.1, 0.2, 0.4 and 0.8 s
    assert all("http://me:***@host/a.tar: at byte 100: 1200 of 5000 bytes in " in message for message in messages)


def test_where_nobody_tells_the_bytes_none_are_claimed(caplog: pytest.LogCaptureFixture) -> None:
    stop = Stop()
    watch = SlowReads(stop, 0.05)
    with caplog.at_level(logging.WARNING), watch.reading("s3://bucket/a.tar", 7, 5000):
        time.sleep(0.3)
    stop.set()
    watch.close()
    assert "s3://bucket/a.tar: at byte 7: 5000 bytes in " in caplog.text
