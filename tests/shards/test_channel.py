"""Promises of the channel: whole messages in order, and a worker that is never stopped by it."""

import os
import time

from headrace.shards.channel import Channel, Sender


def test_messages_arrive_whole_and_in_order() -> None:
    with Channel() as channel:
        sender = Sender(channel.writer)
        for number in range(5):
            sender.send({"unit": number, "text": "\u00e4\ud800\n"})
        assert [message["unit"] for message in channel.messages()] == [0, 1, 2, 3, 4]
        assert list(channel.messages()) == []


def test_a_message_that_is_cut_by_a_read_is_put_together() -> None:
    with Channel() as channel:
        os.write(channel.writer.fileno(), b'{"unit": 1}\n{"un')
        assert list(channel.messages()) == [{"unit": 1}]
        os.write(channel.writer.fileno(), b'it": 2}\n')
        assert list(channel.messages()) == [{"unit": 2}]


def test_a_full_pipe_drops_beats_and_waits_only_a_moment_for_log_lines() -> None:
    with Channel() as channel:
        sender = Sender(channel.writer)
        begun = time.monotonic()
        for number in range(100_000):
            sender.send({"unit": number, "beat": []})
        assert time.monotonic() - begun < 30
        sender.send({"unit": 0, "log": 20, "text": "x"})
        units = [message["unit"] for message in channel.messages()]
    assert units == list(range(len(units)))
    assert 100 < len(units) < 100_000


def test_a_message_too_long_for_one_write_is_not_sent() -> None:
    with Channel() as channel:
        Sender(channel.writer).send({"text": "x" * 5000})
        assert list(channel.messages()) == []


def test_a_driver_that_is_gone_is_no_error() -> None:
    with Channel() as channel:
        sender = Sender(channel.writer)
        channel._reader.close()
        sender.send({"unit": 1, "beat": []})
        sender.send({"unit": 1, "log": 20, "text": "x"})
