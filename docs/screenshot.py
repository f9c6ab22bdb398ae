"""Take the picture of a page that the docs show: `python docs/screenshot.py PAGE.html OUT.png [SECTION ...]`.

Chromium opens the page at 1400 pixels and shows only the sections whose titles begin with those texts. The picture ends
after `MAX_HEIGHT` pixels.
"""

import asyncio
import base64
import importlib.util
import json
import sys
import tempfile
from pathlib import Path
from types import ModuleType

WIDTH, MAX_HEIGHT = 1400, 2200
SHOW = """(async (wanted) => {
  for (const section of document.querySelectorAll("section > details")) {
    const title = section.querySelector("h2").textContent;
    section.open = !wanted.length || wanted.some((text) => title.startsWith(text));
    section.parentElement.hidden = !section.open;
  }
  for (const image of document.images) image.loading = "eager";
  const open = Array.from(document.images).filter((image) => image.offsetParent);
  await Promise.all(open.map((image) => image.decode()));
  return document.documentElement.scrollHeight;
})"""


def load_browser() -> ModuleType:
    """Return the tests' own way to drive Chromium."""
    place = Path(__file__).parent.parent / "tests" / "curation" / "report" / "browser.py"
    spec = importlib.util.spec_from_file_location("report_browser", place)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["report_browser"] = module
    spec.loader.exec_module(module)
    return module


async def shoot(page: Path, out: Path, sections: list[str]) -> None:
    """Write the picture."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        async with load_browser().open_browser(Path(profile)) as tab:
            await tab.send("Page.enable")
            size = {"width": WIDTH, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
            await tab.send("Emulation.setDeviceMetricsOverride", **size)
            await tab.send("Page.navigate", url=page.resolve().as_uri())
            await tab.wait_for("Page.loadEventFired")
            height = await tab.evaluate(f"{SHOW}({json.dumps(sections)})")
            clip = {"x": 0, "y": 0, "width": WIDTH, "height": min(height, MAX_HEIGHT), "scale": 1}
            found = await tab.send("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
    out.write_bytes(base64.b64decode(found["data"]))


if __name__ == "__main__":
    asyncio.run(shoot(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]))
