"""Promises of the life sign of fetch: rows, bytes and failures move within a shard, and a stuck host is named."""

import asyncio
import json
from pathlib import Path
from typing import Any

from headrace.curation.stages import fetch as run_fetch
from headrace.shards.progress import Progress


def test_numbers_move_within_one_shard_and_the_slow_host_is_named(server: Any, web: Any, tmp_path: Path) -> None:
    stuck, let_go = web.WebServer("127.0.0.3"), asyncio.Event()

    async def hang(_: Any, writer: asyncio.StreamWriter) -> None:
        await asyncio.wait_for(let_go.wait(), 100)
        writer.write(web.reply(status="404 Not Found"))

    stuck.answers["/stuck.jpg"] = hang
    sizes = []
    for number in range(9):
        image = web.jpeg(number)
        server.answers[f"/{number}.jpg"] = web.reply(image)
        sizes.append(len(image))
    urls = [*(server.url(f"/{number}.jpg") for number in range(9)), server.url("/missing.jpg"), stuck.url("/stuck.jpg")]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps({"url": url, "caption": ""}) + "\n" for url in urls))
    config = web.config_for(server, allow_private=(server.pair, stuck.pair), attempt_seconds=120.0)
    seen: list[Progress] = []

    def note(progress: Progress) -> None:
        seen.append(progress)
        if progress.counts.get("rows") == 10:  # all but the stuck one
            stuck._loop.call_soon_threadsafe(let_go.set)

    try:
        summary = run_fetch(web.recipe_for(tmp_path / "job", tmp_path / "list.jsonl", config), on_progress=note)
    finally:
        stuck.close()
    assert summary.failed == {"http-4xx": 2}
    inside = [item for item in seen if item.done == 0 and item.counts.get("rows") == 10]
    assert inside, "nothing was told while the stuck host was waited for"
    assert inside[-1].counts == {"rows": 10, "bytes": sum(sizes)}
    assert inside[-1].expected == {"rows": 11}
    assert inside[-1].failures == {"http-4xx": 1}
    assert max(inside[-1].hosts, key=lambda host: inside[-1].hosts[host]) == "127.0.0.3"
    assert seen[-1].counts == {"rows": 11, "bytes": sum(sizes)}
    assert seen[-1].failures == {"http-4xx": 2}
    assert (seen[-1].done, seen[-1].total) == (1, 1)
