"""`headrace verify`: check every byte of a dataset and name each damaged sample."""

import typer


def verify_command(
    dataset: str = typer.Argument(..., help="Folder or URL of a dataset."),
    decode: bool = typer.Option(False, "--decode", help="Also decode every image."),
    index_dir: str = typer.Option("", "--index-dir", help="Where the index lies, if not beside the shards."),
) -> None:
    """Check shards against their index; one line for each damaged sample.

    Exit code 0: whole; 1: damaged, or no dataset there.

    Example: headrace verify /data/cifar --decode
    """
    from headrace.shards.dataset import open_dataset
    from headrace.shards.verify import verify_dataset

    opened = open_dataset(dataset, index_dir=index_dir or None)
    num_damages = 0
    for damage in verify_dataset(dataset, index_dir=index_dir or None, decode=decode):
        num_damages += 1
        print(damage)
    if num_damages:
        print(f"damage in {num_damages} places of {len(opened.shards)} shards, {opened.num_samples} samples")
        raise typer.Exit(1)
    print(f"whole: {len(opened.shards)} shards, {opened.num_samples} samples")
