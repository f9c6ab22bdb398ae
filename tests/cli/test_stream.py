"""`headrace stream` shows a mixture, and says in one line what a user got wrong."""

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import yaml
from PIL import Image

from headrace.cli.stream import _deliver
from headrace.pipeline import Batch
from headrace.shards.write import Sample, finish_dataset, write_shard


@pytest.fixture
def mixture_file(tmp_path: Path) -> Path:
    """A mixture over one dataset of twelve pictures."""
    samples = []
    for number in range(12):
        sink = io.BytesIO()
        Image.fromarray(np.full((20, 20, 3), number * 20, np.uint8)).save(sink, "JPEG")
        samples.append(Sample(f"{number:03d}", sink.getvalue(), "jpg", {"label": number}))
    write_shard(str(tmp_path / "data"), "00000", samples)
    finish_dataset(str(tmp_path / "data"), recipe_digest="test")
    path = tmp_path / "mixture.yaml"
    path.write_text(f"lanes: 4\nimage_size: 16\nsources:\n  - {{name: dots, url: {tmp_path / 'data'}}}\n")
    return path


def headrace(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line."""
    command = [sys.executable, "-c", "from headrace.cli.app import main; main()", "stream", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=200)


def test_it_shows_sources_batches_speed_and_waiting(mixture_file: Path) -> None:
    done = headrace(str(mixture_file), "--batches", "3", "--global-batch", "8")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].split()[:3] == ["dots", "12", "1.0000"]
    assert [line.split(":")[0] for line in lines[2:5]] == [f"batch {n} at position {8 * n}" for n in range(3)]
    assert lines[5].startswith("24 images in ")
    assert lines[6].startswith("waited ")
    assert lines[7:] == ["views dots 2.0000", "next: headrace new run run.yaml"]


def test_bench_measures_without_keys(mixture_file: Path) -> None:
    done = headrace(str(mixture_file), "--batches", "2", "--bench")
    assert done.returncode == 0, done.stderr
    assert "batch 0" not in done.stdout
    assert "128 images in " in done.stdout


def test_bench_says_the_ceiling_and_what_it_is_bound_by(mixture_file: Path) -> None:
    done = headrace(str(mixture_file), "--bench", "--seconds", "0.2")
    assert done.returncode == 0, done.stderr
    for words in ("images/s", "ms of processor time an image", "first batch after", "decoder turbo: ", "bound by "):
        assert words in done.stdout
    done = headrace(str(mixture_file), "--bench", "--seconds", "0.2", "--json")
    ceiling = json.loads(done.stdout)["ceiling"]
    assert ceiling["images_per_second"] > 0
    assert ceiling["stats"]["stages"]["decode"]["count"] > 0


def test_tune_prints_yaml_that_the_mixture_takes(mixture_file: Path) -> None:
    done = headrace(str(mixture_file), "--tune", "--seconds", "2")
    assert done.returncode == 0, done.stderr
    assert "images/s  decode_threads " in done.stderr
    settings = yaml.safe_load(done.stdout)
    assert set(settings) == {"decode_threads", "io_threads", "prefetch_batches"}
    mixture_file.write_text(mixture_file.read_text() + done.stdout)
    assert headrace(str(mixture_file), "--dry-run").returncode == 0
    done = headrace(str(mixture_file), "--tune", "--seconds", "1", "--json", "-q")
    assert done.stderr == ""
    assert json.loads(done.stdout)["tuning"]["trials"]


def test_dry_run_says_views_and_weights_as_they_are_met_and_reads_nothing(mixture_file: Path) -> None:
    url = mixture_file.parent / "data"
    for tar in (url / "shards").glob("*.tar"):
        tar.unlink()
    weights = {"a": 1, "b": 0.00021, "c": 0.00009}
    named = ", ".join(f"{{name: {name}, url: {url}, weight: {weight}}}" for name, weight in weights.items())
    done = headrace(str(mixture_file), "--dry-run", f"sources=[{named}]", "views=[{}, {image_size: 8}]")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 4 + 3 + 1
    assert lines[5].startswith("source b: its weight 0.000209937 is met as ")
    assert "after 1,000,000,000 samples it is " in lines[5]
    assert lines[7] == "2 views of 16, 8 pixels"


def test_it_says_how_well_a_source_is_shuffled_and_what_to_change(tmp_path: Path) -> None:
    sink = io.BytesIO()
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(sink, "JPEG")
    for shard in range(20):
        samples = [Sample(f"{shard:02d}{n:03d}", sink.getvalue(), "jpg", {"label": shard}) for n in range(20)]
        write_shard(str(tmp_path / "data"), f"{shard:05d}", samples)
    finish_dataset(str(tmp_path / "data"), recipe_digest="test")
    path = tmp_path / "mixture.yaml"
    path.write_text(f"lanes: 4\nsources:\n  - {{name: dots, url: {tmp_path / 'data'}, shuffle_window: 0}}\n")
    done = headrace(str(path), "--dry-run", "--global-batch", "32")
    assert done.returncode == 0, done.stderr
    line, advice = done.stdout.splitlines()[2:]
    assert line.startswith("shuffle dots: 32 samples a batch, of ")
    assert "of 40 equal parts of the index (ideal 22; dispersion " in line
    assert "of 20 shards (ideal 16)" in line
    assert advice.startswith(
        "  if neighbours in it are alike (sorted by class): chunk_samples: 16, shuffle_window: 256 ("
    )
    told = json.loads(headrace(str(path), "--dry-run", "--global-batch", "32", "--json").stdout)
    assert told["shuffle"]["dots"]["num_shards"] == 20


def test_the_plan_of_a_billion_steps_is_said_without_reading_a_picture(mixture_file: Path) -> None:
    for tar in (mixture_file.parent / "data" / "shards").glob("*.tar"):
        tar.unlink()
    text = mixture_file.read_text().replace("{name: dots,", "{name: dots, repeat: 3,")
    mixture_file.write_text(text + f"  - {{name: rest, url: {mixture_file.parent / 'data'}}}\n")
    arguments = (str(mixture_file), "--global-batch", "8", "--plan", "1000000000")
    done = headrace(*arguments, "segments=[{start: 16, weights: {rest: 3}}]")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[3] == "1,000,000,000 steps of 8 samples: 8,000,000,000 samples"
    assert lines[5].split()[:4] == ["1-2", "4", "dots", "8"]
    assert [line.rsplit(" ", 2)[0] for line in lines[-3:-1]] == [
        "source dots: ends in",
        "source dots: repeats from step",
    ]
    assert lines[-1].startswith("source rest: repeats from step ")
    told = json.loads(headrace(*arguments, "--json").stdout)
    assert told["plan"]["sources"]["dots"]["total"]["epochs"] == 3
    assert told["plan"]["sources"]["dots"]["total"]["num_samples"] == 36
    assert told["plan"]["segments"][0]["last_step"] == 10**9


def test_decoders_are_listed() -> None:
    command = [sys.executable, "-c", "from headrace.cli.app import main; main()", "decoders"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert "turbo  libjpeg-turbo for JPEGs" in done.stdout
    assert {"auto", "turbo", "none"}.issubset(line.split()[0] for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lanes=16"], "source 'dots' has 12 samples for 16 lanes; set lanes to 12 or less"),
        (["--global-batch", "6"], "global batch 6 is not a multiple of the 4 lanes"),
        (["lans=3"], "unknown key 'lans'"),
        (["sources.0.url=/nowhere"], "/nowhere is not a dataset"),
        (["memory_bytes=5"], "raise memory_bytes"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_1(mixture_file: Path, arguments: list[str], message: str) -> None:
    done = headrace(str(mixture_file), *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_keys_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    batch = Batch(
        images=np.zeros((1, 1, 1, 3), np.uint8),
        columns={},
        position=np.zeros(1, np.int64),
        source=np.zeros(1, np.int32),
        key=["a\x1b[2Jb\n"],
        valid=np.ones(1, np.bool_),
    )

    class OneBatch:
        views: ClassVar[dict[str, float]] = {}
        bad_samples: ClassVar[dict[str, int]] = {}
        num_retries = 0

        def __next__(self) -> Batch:
            return batch

    _deliver(OneBatch(), 1, show_keys=True)  # type: ignore[arg-type]
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.startswith("batch 0 at position 0: a [2Jb")


def test_json_is_one_object_with_sources_and_speed(mixture_file: Path) -> None:
    done = headrace(str(mixture_file), "--batches", "3", "--global-batch", "8", "--json")
    facts = json.loads(done.stdout)
    assert (done.returncode, facts["sources"]["dots"]["num_samples"], facts["view_pixels"]) == (0, 12, [16])
    assert facts["delivery"]["num_images"] == 24
    assert facts["delivery"]["views"] == {"dots": 2.0}
    assert set(facts["delivery"]["waited_seconds"]) == {"read", "decode"}
    done = headrace(str(mixture_file), "--dry-run", "--json")
    assert "delivery" not in json.loads(done.stdout)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--plan", "5", "--bench"), "--bench and --plan are different runs: give one of them"),
        (("--tune", "--verify-run", "runs/a"), "--tune and --verify-run are different runs: give one of them"),
        (("--plan", "5", "--batches", "2"), "--batches is how many are delivered: leave it out with --plan"),
        (
            ("--verify-run", "runs/a", "--global-batch", "64"),
            "--verify-run takes the global batch from the run: leave --global-batch out",
        ),
        (("--seconds", "5"), "--seconds is how long --bench or --tune measures: give one of them, or leave it out"),
    ],
)
def test_options_that_mean_nothing_together_are_refused(
    mixture_file: Path, options: tuple[str, ...], message: str
) -> None:
    done = headrace(str(mixture_file), *options)
    assert (done.returncode, done.stderr.strip()) == (1, f"headrace: {message}")


def test_a_dry_run_of_tuning_only_opens(mixture_file: Path) -> None:
    done = headrace(str(mixture_file), "--tune", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].split()[:2] == ["dots", "12"]
    assert "decode_threads" not in done.stdout + done.stderr
