"""Run by test_core_alone.py with the Python of an environment that holds headrace's core and no extra.

It serves a few drawn pictures on loopback and takes them through every command that must run without torch.
"""

import functools
import http.server
import importlib.util
import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
from PIL import Image

ABSENT = ("torch", "open_clip", "onnxruntime", "ray", "nvidia", "img2dataset")

RECIPE = """\
job: {job}
unsafe_images: off
input: {{urls: [{urls}], url_column: url, caption_column: caption}}
fetch: {{allow_private: ["127.0.0.1:{port}"], samples_per_shard: 4}}
annotate: {{faces: {{detector: haar, accept_weak: true}}}}
select:
  - {{step: rule, name: min_side, keep: "least(image_width, image_height) >= 64"}}
  - {{step: exact_duplicates}}
  - {{step: near_duplicates}}
engine: {{executor: inline}}
"""


class Quiet(http.server.SimpleHTTPRequestHandler):
    """Serves a folder without a line on stderr for every request."""

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def headrace(*arguments: str) -> str:
    """Run one command of this environment; fail with its output."""
    command = [str(Path(sys.executable).parent / "headrace"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit {done.returncode}\n{done.stdout}\n{done.stderr}")
    return done.stdout


def draw(folder: Path, number: int, side: int) -> str:
    """Write one picture; return its name."""
    noise = np.random.default_rng(number).integers(0, 256, (8, 8, 3), np.uint8)
    name = f"{number}.jpg"
    Image.fromarray(noise).resize((side, side), Image.Resampling.BICUBIC).save(folder / name, quality=90)
    return name


def main(folder: Path) -> None:
    """Take the pictures through every command that needs no extra, on the core alone."""
    present = [name for name in ABSENT if importlib.util.find_spec(name)]
    if present:
        sys.exit(f"this environment is not the core alone: it has {', '.join(present)}")
    web = folder / "web" / "pictures"
    web.mkdir(parents=True)
    names = [draw(web, number, 32 if number == 3 else 128) for number in range(8)]
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(web.parent)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_address[1]
    rows = [f"http://127.0.0.1:{port}/pictures/{name},picture {name}\n" for name in [*names, "missing.jpg"]]
    (folder / "urls.csv").write_text("url,caption\n" + "".join(rows))
    job, dataset = folder / "job", folder / "job" / "dataset"
    recipe = folder / "recipe.yaml"
    recipe.write_text(RECIPE.format(job=job, urls=folder / "urls.csv", port=port))
    for stage in ("fetch", "annotate", "select", "build", "report"):
        headrace(stage, str(recipe), "--dry-run")
        headrace(stage, str(recipe))
    server.shutdown()
    headrace("curate", str(recipe))
    headrace("verify", str(dataset))
    headrace("index", str(job / "raw"), "--index-dir", str(folder / "index"))
    headrace("import", str(folder / "web"), str(folder / "imported"))
    headrace("verify", str(folder / "imported"))
    kept = json.loads((dataset / "dataset.json").read_text())["num_samples"]
    if kept != 7:
        sys.exit(f"expected 7 of 9 rows in the dataset (one is too small, one is missing), got {kept}")
    import pyarrow.parquet as pq

    uid = pq.read_table(next((job / "ledger").glob("*/ledger.parquet"))).column("uid")[0].as_py()
    headrace("why", str(job), uid)
    headrace("why", str(dataset), uid)
    mixture = folder / "mixture.yaml"
    mixture.write_text(f"image_size: 32\nlanes: 1\nsources: [{{name: web, url: {dataset}}}]\n")
    headrace("stream", str(mixture), "--global-batch", "4", "--batches", "2")
    headrace("trace", str(mixture), "--step", "2", "--global-batch", "4", "--out", str(folder / "step.html"))
    headrace("audit", str(mixture), "--upto", "2", "--global-batch", "4")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
