"""The report in a real browser: offline, without an error, without a request; tables sort and search."""

import asyncio
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from headrace.curation.job import Job
from headrace.curation.recipe import Recipe
from headrace.curation.stages import build as run_build
from headrace.curation.stages import report as run_report


def _load_browser() -> Any:
    # Test folders are no packages, so a helper beside a test is loaded by its path.
    spec = importlib.util.spec_from_file_location("report_browser", Path(__file__).with_name("browser.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["report_browser"] = module
    spec.loader.exec_module(module)
    return module


browser = _load_browser()

SHOW_ALL = """(async () => {
  const images = Array.from(document.images);
  for (const image of images) { image.loading = "eager"; await image.decode(); }
  return images.filter((image) => image.naturalWidth > 0).length;
})()"""
SORT = """(() => {
  const table = Array.from(document.querySelectorAll("table")).find((t) => t.textContent.includes("host0.test"));
  const column = Array.from(table.tHead.rows[0].cells).findIndex((c) => c.textContent.startsWith("kept"));
  table.tHead.rows[0].cells[column].querySelector("button").click();
  const up = Array.from(table.tBodies[0].rows).map((r) => Number(r.cells[column].textContent));
  table.tHead.rows[0].cells[column].querySelector("button").click();
  const down = Array.from(table.tBodies[0].rows).map((r) => Number(r.cells[column].textContent));
  return [up, down, table.tHead.rows[0].cells[column].getAttribute("aria-sort")];
})()"""
SEARCH = """(() => {
  const find = document.querySelector(".find");
  const input = find.querySelector("input");
  input.value = "FETCH http";
  input.dispatchEvent(new Event("input"));
  const rows = Array.from(find.parentElement.querySelectorAll("tbody tr"));
  return [find.hidden, rows.filter((r) => !r.hidden).map((r) => r.cells[0].textContent), rows.length];
})()"""


PEOPLE = """(async () => {
  const found = {};
  const pause = () => new Promise((done) => setTimeout(done, 60));
  const sections = Array.from(document.querySelectorAll("section > details"));
  const named = (text) => sections.find((d) => d.querySelector("h2").textContent.startsWith(text));
  found.open = sections.filter((d) => d.open).map((d) => d.querySelector("h2").textContent);
  found.height = document.documentElement.scrollHeight;
  Array.from(document.querySelectorAll("nav a")).find((a) => a.textContent === "Dropped rows").click();
  await pause();
  found.revealed = named("Dropped rows").open;
  const dropped = Array.from(named("Dropped rows").querySelectorAll("details"));
  const rows = (d) => Array.from(d.querySelectorAll("tbody tr"));
  const near = dropped.find((d) => d.textContent.startsWith("near_duplicates"));
  const input = near.querySelector("input");
  input.value = "number 20";
  input.dispatchEvent(new Event("input"));
  found.searched = [rows(near).length, rows(near).filter((r) => !r.hidden).map((r) => r.cells[2].textContent)];
  const copy = near.querySelector("button.copy");
  copy.click();
  await pause();
  found.copied = [copy.title, copy.textContent.length];
  const pairs = named("Pairs: near_duplicates");
  found.pairs = Array.from(pairs.querySelectorAll(".pair"), (p) => p.querySelectorAll("img").length);
  pairs.open = true;
  pairs.querySelector(".zoom").focus();
  return found;
})()"""
VIEWER = """(async () => {
  await new Promise((done) => setTimeout(done, 60));
  const viewer = document.querySelector("dialog");
  const count = viewer && viewer.querySelector(".count").textContent;
  return [Boolean(viewer && viewer.open), count, viewer ? viewer.querySelectorAll("img").length : 0,
    document.activeElement.className];
})()"""
OPEN_ALL = "for (const d of document.querySelectorAll('details')) d.open = true"
KEYS = {"Enter": 13, "ArrowRight": 39, "Escape": 27}


async def _press(tab: Any, key: str) -> list[Any]:
    """Press a key as a person does; return what the viewer of pictures then shows."""
    code = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
    text = {"text": "\r"} if key == "Enter" else {}
    await tab.send("Input.dispatchKeyEvent", type="keyDown", **code, **text)
    await tab.send("Input.dispatchKeyEvent", type="keyUp", **code)
    return list(await tab.evaluate(VIEWER))


async def _overflow(tab: Any, width: int) -> int:
    """Return by how many pixels the page is wider than a window of `width`."""
    await tab.send("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
    return int(await tab.evaluate("document.documentElement.scrollWidth - window.innerWidth"))


async def _visit(url: str, profile: Path) -> dict[str, Any]:
    async with browser.open_browser(profile) as tab:
        for domain in ("Page", "Network", "Log", "Runtime"):
            await tab.send(f"{domain}.enable")
        await tab.send("Page.navigate", url=url)
        await tab.wait_for("Page.loadEventFired")
        found = {
            "title": await tab.evaluate("document.title"),
            "images": await tab.evaluate(SHOW_ALL),
            "sort": await tab.evaluate(SORT),
            "search": await tab.evaluate(SEARCH),
            "people": await tab.evaluate(PEOPLE),
            "keys": [await _press(tab, key) for key in KEYS],
            "all": await tab.evaluate(OPEN_ALL),
            "wide": [await _overflow(tab, width) for width in (1400, 1200, 400, 360)],
            "foreign": await tab.evaluate("fetch('http://127.0.0.1:9/').then(() => 'allowed', () => 'refused')"),
        }
        requests = [event["request"]["url"] for event in tab.of("Network.requestWillBeSent")]
        complaints = tab.of("Log.entryAdded", "Runtime.exceptionThrown", "Runtime.consoleAPICalled")
        return {**found, "requests": requests, "complaints": complaints}


@pytest.mark.full
def test_the_report_opens_offline_sorts_and_searches(
    make_job: Callable[..., Recipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The small job's tables are short; every one of them gets its search field here.
    monkeypatch.setattr("headrace.page.html.SEARCHABLE_ROWS", 2)
    recipe = make_job()
    run_build(recipe)
    summary = run_report(recipe)
    page = Path(Job(recipe.job).report, "report.html")
    found = asyncio.run(_visit(page.as_uri(), tmp_path / "profile"))
    assert found["title"] == "Curation report"
    assert found["images"] == summary.num_pictures > 20
    outside = [url for url in found["requests"] if not url.startswith("data:")]
    # The page itself, and the fetch that this test tried and the policy refused before it became a request.
    assert outside == [page.as_uri()]
    assert found["foreign"] == "refused"
    unexpected = [item for item in found["complaints"] if "127.0.0.1:9" not in str(item)]
    assert unexpected == []
    up, down, direction = found["sort"]
    assert up == sorted(up) != down == sorted(down, reverse=True)
    assert direction == "descending"
    hidden, shown, total = found["search"]
    assert not hidden
    assert shown == ["fetch"]
    assert total == 6
    assert max(found["wide"]) <= 0
    people = found["people"]
    assert people["open"] == ["Overview", "Funnel"]
    assert people["height"] < 5000
    assert people["revealed"]
    assert people["searched"] == [2, ["a picture, number 20 <b>&"]]
    assert people["copied"] == ["Copied", 32]
    assert people["pairs"] == [2, 2]
    # The keyboard alone: Enter enlarges both pictures of a pair, an arrow goes to the next, Escape goes back to it.
    assert found["keys"] == [
        [True, "1 of 2", 2, ""],
        [True, "2 of 2", 2, ""],
        [False, "2 of 2", 0, "zoom"],
    ]
