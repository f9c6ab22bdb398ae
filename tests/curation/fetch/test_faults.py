"""What a crawl meets, and what it may cost: slow hosts their time once, a kill seconds, a URL one request."""

import asyncio
import json
import logging
import socket
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from headrace.curation.fetch import crawl as crawling
from headrace.curation.fetch.net import health, resolve
from headrace.curation.job import Job
from headrace.curation.raw.read import raw_shards, read_raw
from headrace.curation.stages import fetch as run_fetch
from headrace.shards.commit import committed


def all_rows(job: Path) -> list[dict[str, Any]]:
    return [row for shard in raw_shards(Job(str(job))) for row in read_raw(Job(str(job)), shard).to_pylist()]


def write_list(path: Path, urls: list[str]) -> Path:
    path.write_text("".join(json.dumps({"url": url, "caption": ""}) + "\n" for url in urls))
    return path


async def drip(_: Any, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n\xff\xd8\xff")
    while True:
        await asyncio.sleep(0.2)
        writer.write(b"\0")
        await writer.drain()


@pytest.fixture
def slow(web: Any) -> Any:
    """A server of its own address whose answers drip."""
    server = web.WebServer("127.0.0.3")
    yield server
    server.close()


@pytest.mark.full
@pytest.mark.parametrize("executor", ["inline", "local"])
def test_trickling_rows_cost_their_time_once_for_the_whole_job(server, slow, web, tmp_path: Path, executor) -> None:
    for number in range(240):
        server.answers[f"/{number}.jpg"] = web.reply(web.jpeg(number % 7))
    urls = [server.url(f"/{number}.jpg") for number in range(240)]
    for number in range(8):
        slow.answers[f"/{number}"] = drip
        urls.insert(30 * number, slow.url(f"/{number}"))
    config = web.config_for(server, allow_private=(server.pair, slow.pair), samples_per_shard=62, slow_seconds=4.0)
    summary = run_fetch(
        web.recipe_for(tmp_path / "job", write_list(tmp_path / "list.jsonl", urls), config, executor=executor)
    )
    assert (summary.fetched, summary.failed) == (240, {"timeout": 8})
    # Each is asked once. That shards do not wait for one another is shown below.
    assert len({path for path, _ in slow.requests}) == len(slow.requests) <= 8
    said = {row["error_message"] for row in all_rows(tmp_path / "job") if row["error_class"] == "timeout"}
    assert any("under 1000 bytes a second for 4 s" in text for text in said)


def test_a_dripping_host_costs_a_window_whatever_the_number_of_its_rows(server, slow, web, tmp_path: Path) -> None:
    slow.answers.update({f"/{number}": drip for number in range(40)})
    server.answers.update({f"/{number}.jpg": web.reply(web.jpeg(number)) for number in range(60)})
    urls = [server.url(f"/{number}.jpg") for number in range(60)] + [slow.url(f"/{number}") for number in range(40)]
    config = web.config_for(server, allow_private=(server.pair, slow.pair), slow_seconds=1.0, retries=2)
    summary = run_fetch(web.recipe_for(tmp_path / "job", write_list(tmp_path / "list.jsonl", urls), config))
    assert (summary.fetched, summary.failed) == (60, {"timeout": 40})
    assert len(slow.requests) <= 8  # per_host, and those begun before the fourth was given up


def test_the_next_shard_begins_while_a_straggler_of_the_last_one_is_waited_for(server, web, tmp_path: Path) -> None:
    gate = asyncio.Event()

    async def late(_: Any, writer: asyncio.StreamWriter) -> None:
        await asyncio.wait_for(gate.wait(), 60)
        writer.write(web.reply(web.jpeg(0)))

    server.answers.update({f"/{number}.jpg": web.reply(web.jpeg(number)) for number in range(40)})
    server.answers["/0.jpg"] = late
    urls = [server.url(f"/{number}.jpg") for number in range(40)]
    config = web.config_for(server, samples_per_shard=5, attempt_seconds=60.0)
    at_release: list[list[str]] = []

    def watch(progress: Any) -> None:
        if progress.done == 7 and not at_release:  # all other shards are done, and committed
            at_release.append(committed(f"{tmp_path}/job/raw"))
            server._loop.call_soon_threadsafe(gate.set)

    recipe = web.recipe_for(tmp_path / "job", write_list(tmp_path / "list.jsonl", urls), config)
    assert run_fetch(recipe, on_progress=watch).fetched == 40
    assert len(at_release[0]) == 7


@pytest.mark.parametrize("shards", [1, 3])
def test_one_url_is_requested_once_by_shards_that_are_under_way_together(
    server, web, tmp_path: Path, monkeypatch, shards: int
) -> None:
    others_done, write = threading.Event(), crawling.write_unit

    def write_first_last(unit: Any, *parts: Any) -> None:
        assert unit.shard.number or shards == 1 or others_done.wait(60)
        write(unit, *parts)

    monkeypatch.setattr(crawling, "write_unit", write_first_last)
    server.answers.update({f"/{number}.jpg": web.reply(web.jpeg(number)) for number in range(4)})
    paths = ["/0.jpg", "/1.jpg", "/missing", "/0.jpg"] * 9 + ["/2.jpg", "/3.jpg"]
    lists = write_list(tmp_path / "list.jsonl", [server.url(path) for path in paths])
    config = web.config_for(server, samples_per_shard=-(-len(paths) // shards))
    run_fetch(
        web.recipe_for(tmp_path / "job", lists, config),
        on_progress=lambda progress: others_done.set() if progress.done == shards - 1 else None,
    )
    once = dict.fromkeys(("/0.jpg", "/1.jpg", "/2.jpg", "/3.jpg", "/missing"), 1)
    assert Counter(path for path, _ in server.requests if path != "/robots.txt") == once
    rows = all_rows(tmp_path / "job")
    assert Counter(row["url"] for row in rows) == Counter(map(server.url, paths))
    assert len({(row["url"], row["sha256"], row["error_class"]) for row in rows}) == 5


def test_a_row_that_expects_another_sum_than_its_twin_fails_alone(server, web, tmp_path: Path) -> None:
    server.answers["/0.jpg"] = web.reply(web.jpeg(0))
    records = [{"url": server.url("/0.jpg"), "caption": "", "sum": value} for value in (None, "0" * 64, None)]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    recipe = web.recipe_for(tmp_path / "job", tmp_path / "list.jsonl", web.config_for(server), sha256_column="sum")
    assert run_fetch(recipe).failed == {"sha256-mismatch": 1}


def test_what_was_fetched_before_the_run_was_cut_short_is_not_fetched_again(
    server, web, tmp_path: Path, monkeypatch
) -> None:
    server.answers.update({f"/{number}.jpg": web.reply(web.jpeg(number)) for number in range(30)})
    urls = [server.url(f"/{number}.jpg") for number in range(30)] + [server.url("/missing"), "ftp://x/"]
    lists = write_list(tmp_path / "list.jsonl", urls)
    config = web.config_for(server, samples_per_shard=32)
    run_fetch(web.recipe_for(tmp_path / "whole", lists, config))
    server.requests.clear()

    class Stop(Exception):
        pass

    def stop(*_: Any) -> None:
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(crawling, "write_unit", stop)
        with pytest.raises(Stop):
            run_fetch(web.recipe_for(tmp_path / "job", lists, config))
    spools = sorted((tmp_path / "job/spool").glob("*.rows"))
    assert spools
    spools[0].write_bytes(spools[0].read_bytes()[:-3])  # torn by the kill
    run_fetch(web.recipe_for(tmp_path / "job", lists, config))
    asked = Counter(path for path, _ in server.requests if path != "/robots.txt")
    assert sum(asked.values()) <= 31 + 1  # the torn one once more
    files = lambda job: {path.name: path.read_bytes() for path in (tmp_path / job / "raw").rglob("*") if path.is_file()}  # noqa: E731
    assert files("job") == files("whole")
    assert not (tmp_path / "job/spool").exists()


class Names:
    """A name server that is out until it is told otherwise; every look-up is counted."""

    def __init__(self) -> None:
        self.out = False
        self.asked: Counter[str] = Counter()

    def getaddrinfo(self, host: str, *_: Any, **__: Any) -> list[Any]:
        self.asked[host] += 1
        if self.out:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]


def test_a_name_server_that_fails_for_a_while_costs_no_row_and_is_told_once(
    server, web, tmp_path: Path, monkeypatch, caplog
) -> None:
    names = Names()
    monkeypatch.setattr(health, "FIRST_WAIT_SECONDS", 0.02)
    monkeypatch.setattr(health, "MAX_WAIT_SECONDS", 0.05)
    monkeypatch.setattr(resolve.socket, "getaddrinfo", names.getaddrinfo)
    server.answers.update({f"/{number}.jpg": web.reply(web.jpeg(number)) for number in range(60)})

    async def end_it() -> None:
        while "waiting for the network" not in caplog.text:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.5)
        names.out = False

    async def break_down(server: Any, writer: asyncio.StreamWriter) -> None:
        names.out = True
        server.ending = asyncio.create_task(end_it())
        writer.write(web.reply(web.jpeg(20)))

    server.answers["/20.jpg"] = break_down
    urls = [f"http://host{number}.example:{server.port}/{number}.jpg" for number in range(60)]
    config = web.config_for(server, concurrency=4, retries=1, samples_per_shard=25, honor_opt_out=False)
    with caplog.at_level(logging.WARNING):
        summary = run_fetch(web.recipe_for(tmp_path / "job", write_list(tmp_path / "list.jsonl", urls), config))
    assert (summary.fetched, summary.failed) == (60, {})
    assert max(Counter(path for path, _ in server.requests).values()) == 1
    assert sum("waiting for the network" in record.message for record in caplog.records) == 1


def test_a_list_of_refused_rows_is_settled_fast(web, server, tmp_path: Path) -> None:
    count = 20_000
    with (tmp_path / "list.txt").open("w") as file:
        for number in range(count):
            file.write(
                f"ftp://host{number}.example/{number}.jpg\n" if number % 3 else f"http://10.0.0.{number % 250}/\n"
            )
    config = web.config_for(server, honor_opt_out=False)
    before = time.process_time()
    summary = run_fetch(web.recipe_for(tmp_path / "job", tmp_path / "list.txt", config, caption_column=None))
    seconds = time.process_time() - before
    assert summary.rows == sum(summary.failed.values()) == count
    assert set(summary.failed) == {"refused-scheme", "refused-address"}
    assert seconds < 25 * count / 100_000, f"{seconds:.1f} CPU s for {count} refused rows"
