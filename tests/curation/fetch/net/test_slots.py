"""How much is asked at a time: no more than allowed, less of who is troubled, and never nobody."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.curation.fetch.net import slots as module
from headrace.curation.fetch.net.slots import Slots


def run(visit: Callable[[Slots], Awaitable[Any]], *, limit: int = 8, per_host: int = 2) -> Any:
    async def main() -> Any:
        return await asyncio.wait_for(visit(Slots(limit=limit, per_host=per_host)), 120)

    return asyncio.run(main())


@given(
    st.lists(st.tuples(st.integers(0, 4), st.booleans(), st.booleans()), max_size=60),
    st.integers(1, 5),
    st.integers(1, 3),
)
def test_limits_hold_and_everybody_gets_a_turn(asked: list[tuple[int, bool, bool]], limit: int, per_host: int) -> None:
    async def visit(slots: Slots) -> None:
        inside: Counter[str] = Counter()

        async def one(host: str, troubled: bool) -> None:
            async with slots.slot(host):
                inside[host] += 1
                assert inside.total() <= limit
                assert inside[host] <= per_host
                await asyncio.sleep(0)
                slots.troubled(host) if troubled else slots.pleased(host)
                await asyncio.sleep(0)
                inside[host] -= 1

        tasks = [asyncio.create_task(one(f"h{host}", troubled)) for host, _, troubled in asked]
        await asyncio.sleep(0)
        for task, (_, cancelled, _) in zip(tasks, asked, strict=True):
            if cancelled and not inside.total():
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert slots.in_flight == 0
        assert all(task.cancelled() or task.exception() is None for task in tasks)

    run(visit, limit=limit, per_host=per_host)


def test_a_cancelled_waiter_gives_its_turn_to_the_next() -> None:
    async def visit(slots: Slots) -> list[str]:
        order: list[str] = []
        over = asyncio.Event()

        async def hold(name: str) -> None:
            async with slots.slot("a"):
                order.append(name)
                await over.wait()

        first, second, third = (asyncio.create_task(hold(name)) for name in ("first", "second", "third"))
        await asyncio.sleep(0.01)
        second.cancel()
        over.set()
        await asyncio.gather(first, third)
        assert slots.in_flight == 0
        return order

    assert run(visit, per_host=1) == ["first", "third"]


def test_a_slow_host_keeps_no_other_waiting() -> None:
    async def visit(slots: Slots) -> list[str]:
        done: list[str] = []
        never = asyncio.Event()

        async def one(host: str) -> None:
            async with slots.slot(host):
                if host == "slow":
                    await never.wait()
                done.append(host)

        slow = [asyncio.create_task(one("slow")) for _ in range(20)]
        await asyncio.sleep(0)
        await asyncio.gather(*(one(f"h{number}") for number in range(20)))
        for task in slow:
            task.cancel()
        await asyncio.gather(*slow, return_exceptions=True)
        return done

    assert sorted(run(visit, limit=4, per_host=2)) == sorted(f"h{number}" for number in range(20))


def test_a_troubled_host_is_asked_less_then_more_and_not_before_it_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CUT_SECONDS", 0.0)

    async def visit(slots: Slots) -> tuple[list[int], float]:
        inside, most, loop = 0, [0], asyncio.get_running_loop()

        async def one() -> None:
            nonlocal inside
            async with slots.slot("a"):
                inside += 1
                most[-1] = max(most[-1], inside)
                await asyncio.sleep(0.005)
                inside -= 1

        await asyncio.gather(*(one() for _ in range(16)))
        for trouble in (lambda: slots.troubled("a"), lambda: slots.troubled("a"), lambda: None):
            trouble()
            most.append(0)
            await asyncio.gather(*(one() for _ in range(16)))
        for _ in range(40):
            slots.pleased("a")
        most.append(0)
        await asyncio.gather(*(one() for _ in range(16)))
        before = loop.time()
        slots.troubled("a", wait_seconds=0.2)
        await one()
        return most, loop.time() - before

    most, waited = run(visit, limit=64, per_host=8)
    assert most == [8, 4, 2, 2, 8]
    assert waited >= 0.2
