"""An outage of one's own network is no answer; a host that never answers is not waited for again and again."""

import asyncio
import logging
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest

from headrace.curation.fetch.errors import FetchError
from headrace.curation.fetch.net import health
from headrace.curation.fetch.net.fetcher import Fetcher
from headrace.curation.fetch.row import Record
from headrace.curation.raw.write import Outcome


class Names:
    """A name server for any name, that can be out."""

    def __init__(self) -> None:
        self.out = False
        self.gone: set[str] = set()
        self.asked = 0

    def __call__(self, host: str) -> list[str]:
        self.asked += 1
        if self.out or host in self.gone:
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return ["127.0.0.1"]


@pytest.fixture
def names(monkeypatch) -> Names:
    monkeypatch.setattr(health, "FIRST_WAIT_SECONDS", 0.02)
    monkeypatch.setattr(health, "MAX_WAIT_SECONDS", 0.05)
    return Names()


def run(server: Any, web: Any, names: Names, visit: Callable[..., Any], **config: Any) -> Any:
    settings = web.config_for(server, **config)

    async def session() -> Any:
        async with Fetcher(settings, lookup=names) as fetcher:

            async def get(host: str) -> Outcome:
                return await web.outcome_of(fetcher, Record(f"http://{host}.example:{server.port}/"), settings)

            return await visit(get, fetcher)

    server.answers["/"] = web.reply(web.jpeg())
    return asyncio.run(session())


async def meet(get: Callable[[str], Any], number: int = health.MIN_WITNESSES) -> None:
    for host in range(number):
        assert (await get(f"known{host}")).error_class is None


def test_rows_of_an_outage_wait_for_its_end(server, web, names, caplog) -> None:
    async def visit(get: Callable[[str], Any], _: Fetcher) -> list[str | None]:
        await meet(get)
        names.out = True

        async def end_it() -> None:
            while "waiting for the network" not in caplog.text:
                await asyncio.sleep(0.01)
            await asyncio.sleep(0.2)
            names.out = False

        ending = asyncio.create_task(end_it())
        found = [outcome.error_class for outcome in await asyncio.gather(*(get(f"new{host}") for host in range(30)))]
        await ending
        return found

    with caplog.at_level(logging.WARNING):
        assert run(server, web, names, visit) == [None] * 30
    assert "waiting for the network" in caplog.text
    assert "network is back" in caplog.text


def test_an_outage_that_does_not_end_ends_the_run(server, web, names) -> None:
    async def visit(get: Callable[[str], Any], _: Fetcher) -> None:
        await meet(get)
        names.out = True
        await get("new")

    with pytest.raises(ConnectionError, match=r"no host could be reached for 0\.2 s .*run the same command again"):
        run(server, web, names, visit, outage_seconds=0.2)


def test_a_host_that_is_gone_alone_is_a_failure_at_once(server, web, names) -> None:
    names.gone = {"gone.example"}

    async def visit(get: Callable[[str], Any], _: Fetcher) -> Outcome:
        await meet(get)
        return await get("gone")

    started = time.monotonic()
    assert run(server, web, names, visit).error_class == "dns"
    assert time.monotonic() - started < 200  # an outage is waited for longer


@pytest.mark.parametrize(("known", "seconds"), [(health.MIN_WITNESSES - 1, 600.0), (health.MIN_WITNESSES, 0.0)])
def test_too_few_witnesses_or_the_users_word_make_it_an_answer(server, web, names, known: int, seconds: float) -> None:
    async def visit(get: Callable[[str], Any], _: Fetcher) -> Outcome:
        await meet(get, known)
        names.out = True
        return await get("new")

    assert run(server, web, names, visit, outage_seconds=seconds).error_class == "dns"


def test_a_shard_that_heard_from_nobody_is_not_committed(server, web, names) -> None:
    async def visit(get: Callable[[str], Any], fetcher: Fetcher) -> None:
        await asyncio.gather(*(get(f"new{host}") for host in range(health.MIN_SILENT_HOSTS)))
        fetcher.health.check_anyone_answered()

    names.out = True
    with pytest.raises(ConnectionError, match="none of 20 hosts could be reached"):
        run(server, web, names, visit)
    run(server, web, names, visit, outage_seconds=0.0)
    names.out = False
    run(server, web, names, visit)


def test_few_dead_hosts_are_no_outage(server, web, names) -> None:
    async def visit(get: Callable[[str], Any], fetcher: Fetcher) -> list[str | None]:
        found = await asyncio.gather(*(get(f"new{host}") for host in range(health.MIN_SILENT_HOSTS - 1)))
        fetcher.health.check_anyone_answered()
        return [outcome.error_class for outcome in found]

    names.out = True
    assert set(run(server, web, names, visit)) == {"dns"}


async def drip(_: Any, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n\xff\xd8")
    await asyncio.sleep(200)


def test_a_host_that_drips_costs_its_first_rows_only(server, web, names) -> None:
    server.answers["/drip"] = drip

    async def visit(get: Callable[[str], Any], fetcher: Fetcher) -> list[Outcome]:
        async def slow() -> Outcome:
            return await web.outcome_of(fetcher, Record(f"http://slow.example:{server.port}/drip"), settings)

        return await asyncio.gather(*(slow() for _ in range(100)), *(get("good") for _ in range(50)))

    # A busy machine may stall for longer than an attempt of a good host may take: it is made again.
    times = {"attempt_seconds": 1.0, "deadline_seconds": 200.0, "retries": 5}
    settings = web.config_for(server, **times)
    found = run(server, web, names, visit, **times)
    assert {outcome.error_class for outcome in found[:100]} == {"timeout"}
    assert {outcome.error_class for outcome in found[100:]} == {None}
    assert sum("not asked again" in outcome.error_message for outcome in found[:100]) >= 80


def test_a_dead_host_is_asked_again_after_a_while_and_lives(server, web, names, monkeypatch) -> None:
    monkeypatch.setattr(health, "DEAD_SECONDS", 500.0)

    async def visit(get: Callable[[str], Any], fetcher: Fetcher) -> tuple[Outcome, Outcome, Outcome]:
        fetcher.health._attempt_seconds = 0.2
        names.gone = {"flaky.example"}
        for _ in range(health.DEAD_AFTER):
            await get("flaky")
            await asyncio.sleep(0.05)
        dead = await get("flaky")
        names.gone = set()
        monkeypatch.setattr(health, "DEAD_SECONDS", 0.0)  # the while is over
        return dead, await get("flaky"), await get("flaky")

    dead, first, second = run(server, web, names, visit)
    assert (dead.error_class, "not asked again" in dead.error_message) == ("dns", True)
    assert (first.error_class, second.error_class) == (None, None)


def test_rows_that_a_failing_host_is_not_asked_for_wait_for_the_end_of_an_outage_too(server, web, names) -> None:
    async def visit(get: Callable[[str], Any], fetcher: Fetcher) -> list[str | None]:
        await meet(get)
        fetcher.health._attempt_seconds = 0.2
        names.out = True
        for _ in range(health.DEAD_AFTER):
            fetcher.health.failed("big.example", "connect")
            await asyncio.sleep(0.05)
        with pytest.raises(FetchError, match="not asked again"):
            fetcher.health.check_host("big.example")
        asyncio.get_running_loop().call_later(0.4, setattr, names, "out", False)
        return [outcome.error_class for outcome in await asyncio.gather(*(get("big") for _ in range(30)))]

    assert run(server, web, names, visit) == [None] * 30
