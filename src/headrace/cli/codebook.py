"""`headrace codebook`: fit a codebook of patches, what `targets: tokens` predicts."""

from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress

from headrace.cli.result import JsonOption, say_json, say_next, say_plan
from headrace.cli.verbosity import is_quiet


def codebook_command(
    mixture: Annotated[
        str, typer.Argument(metavar="MIXTURE.yaml", help="The mixture file, or a run file, whose mixture is taken.")
    ],
    overrides: Annotated[
        list[str] | None, typer.Argument(metavar="key=value", help="Overrides of the mixture: image_size=64")
    ] = None,
    out: Annotated[str, typer.Option("--out", metavar="FILE", help="The safetensors file to write.")] = "",
    size: Annotated[int, typer.Option("--size", min=2, help="Codes.")] = 8192,
    patch: Annotated[int, typer.Option("--patch", min=1, help="Side of a patch in pixels, as the run's.")] = 14,
    images: Annotated[int, typer.Option("--images", min=1, help="Pictures that are looked at.")] = 50_000,
    patches_per_image: Annotated[int, typer.Option("--patches-per-image", min=1, help="Patches of each.")] = 32,
    seed: Annotated[int, typer.Option("--seed", help="Decides which patches are taken.")] = 0,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")] = False,
    json: JsonOption = False,
) -> None:
    """Fit a codebook of patches by k-means on a mixture, for `objective.targets=tokens`.

    The same mixture and options give the same file again on the same machine. It runs on the CPU.

    Example: headrace codebook mixture.yaml --size 8192 --patch 14 --out codebook.safetensors
    """
    from pathlib import Path

    from headrace.train.codebook_fit import FitConfig, check_fit, fit_codebook, load_mixture, write_codebook

    if not out:
        raise ValueError("--out is missing: which file shall hold the codebook?")
    if Path(out).exists():
        raise ValueError(f"{out} exists already; name another file, or remove it")
    found = load_mixture(mixture, overrides or ())
    config = FitConfig(size=size, patch=patch, images=images, patches_per_image=patches_per_image, seed=seed)
    check_fit(found, config)
    taken = config.taken(found.image_size)
    if dry_run:
        plan = [
            f"{size:,} codes of patches of {patch} x {patch} pixels, from pictures of {found.image_size} pixels",
            f"{taken:,} patches of {images:,} pictures, {config.step:,} a step",
            f"about {2 * taken * size * patch * patch * 3:.3g} operations on the CPU",
        ]
        say_plan("codebook", plan, json=json)
        return
    console = Console(stderr=True)
    with Progress(console=console, disable=is_quiet() or not console.is_terminal) as progress:
        task = progress.add_task("patches", total=taken)
        fit = fit_codebook(found, config, on_patches=lambda more: progress.update(task, advance=more))
    digest = write_codebook(Path(out), fit, config)
    facts: dict[str, Any] = {"path": out, "size": size, "sha256": digest, "error": fit.error, "used": fit.used}
    if json:
        say_json("codebook", facts)
        return
    print(f"{out}: {size:,} codes; mean squared error {fit.error:.4f} a value, {fit.used:.1%} used in the last step")
    keys = f"objective.codebook={{path: {out}, size: {size}, sha256: {digest}}}"
    say_next(["headrace", "train", "RUN.yaml", "objective.targets=tokens", keys])
