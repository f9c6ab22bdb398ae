"""What the five curation commands share: read the recipe, show the plan or own the job and run, show progress."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from headrace.cli.progress import show_progress
from headrace.cli.result import after_datasets, facts_of, say_json, say_next, say_plan
from headrace.text import printable

if TYPE_CHECKING:
    from headrace.curation.part import PartSummary
    from headrace.curation.recipe import Recipe
    from headrace.shards.part import Part

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE.yaml", help="The recipe file.")]
OverridesArgument = Annotated[
    list[str] | None,
    typer.Argument(metavar="key=value", help="Overrides: select.top_fraction.fraction=0.3"),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; write nothing.")]
TakeOverOption = Annotated[
    bool, typer.Option("--take-over", help="Take the job from an owner on another machine that you know is gone.")
]
StartOverOption = Annotated[
    bool, typer.Option("--start-over", help="Remove a dataset that was built from another ledger, then build.")
]

PartOption = Annotated[
    str | None,
    typer.Option("--part", metavar="I/N", help="Do part I of N, beside other processes; end it with --merge."),
]
MergeOption = Annotated[
    bool, typer.Option("--merge", help="Finish what all parts have done; name those that are missing.")
]

STAGES = ("fetch", "annotate", "select", "build", "report")


def run_stages(
    names: tuple[str, ...],
    recipe_path: str,
    overrides: list[str] | None,
    *,
    dry_run: bool,
    take_over: bool,
    json: bool = False,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    part: str | None = None,
    merge: bool = False,
) -> None:
    """Run stages of the recipe in order, or with `dry_run` print what each would do.

    `json` prints the stage's summary as JSON, of several stages one object at the end, under `stages`. `options` are
    further arguments of the run functions, by stage. With `part` (I/N) one part of the one stage is done, with `merge`
    it is finished once all parts are.
    """
    from headrace.curation.job import Job, check_job, fence_of_owner, own_job, write_recipe
    from headrace.curation.logs import stage_log
    from headrace.curation.needs import check_names, check_needs, check_recipe
    from headrace.curation.part import check_merge, forget_parts
    from headrace.curation.recipe import load_recipe, recipe_text
    from headrace.curation.stages import DIVIDE, PLAN, RUN, part_digest
    from headrace.shards.part import parse_part

    command = names[0] if len(names) == 1 else "curate"
    recipe = load_recipe(recipe_path, overrides or ())
    check_recipe(recipe)
    check_names(recipe, names)
    check_needs(recipe, names)
    chosen = None if part is None else parse_part(part)
    if chosen is not None and merge:
        raise ValueError("--part does one part, --merge finishes all of them: give one of the two")
    if dry_run:
        check_job(Job(recipe.job), take_over=take_over)
        known = {
            "fetch": (options or {}).get("fetch", {}),
            "select": {"annotate_first": "annotate" in names},
            "build": {"select_first": "select" in names, **(options or {}).get("build", {})},
        }
        plan = (f"{name}: {line}" for name in names for line in PLAN[name](recipe, **known.get(name, {})))
        say_plan(command, plan, json=json)
        return
    if chosen is not None:
        part_done = _run_part(names[0], recipe, chosen, take_over=take_over, options=(options or {}).get(names[0], {}))
        if json:
            say_json(command, part_done)
        else:
            print(printable(f"{command}: {part_done}"))
            say_next(["headrace", command, recipe_path, *(overrides or []), "--merge"])
        return
    done = []
    with own_job(Job(recipe.job), take_over=take_over) as job:
        fence = fence_of_owner(job)
        for name in names:
            fence.check()  # one that slept between two stages may find the job taken over, and given back
            further = (options or {}).get(name, {})
            if merge:
                divided = DIVIDE[name](recipe, **further)
                check_merge(job, name, divided, recipe=part_digest(recipe, name))
                further = {}  # the parts have started over
            with stage_log(job, name), show_progress(name) as on_progress:
                summary = RUN[name](recipe, on_progress=on_progress, **further)
            fence.check()
            forget_parts(job, name)
            write_recipe(job, recipe_text(recipe))
            done.append(facts_of(name, summary))
            if not json:
                print(printable(f"{name}: {summary}"))
    if json:
        say_json(command, {"stages": done} if len(done) > 1 else done[0])
    else:
        alive = [["headrace", "fetch-report", job.url]] if names[-1] == "fetch" else []
        say_next(*alive, *_next(names[-1], recipe_path, overrides or [], job.dataset_named(recipe.build.dataset)))


def _run_part(
    stage: str, recipe: "Recipe", part: "Part", *, take_over: bool, options: Mapping[str, Any]
) -> "PartSummary":
    from headrace.curation.job import Job, begin_job
    from headrace.curation.logs import stage_log
    from headrace.curation.part import run_part
    from headrace.curation.stages import DIVIDE, part_digest

    job = Job(recipe.job)
    begin_job(job)
    # Its own name, or a run of many parts would remove the logs of those beside it.
    with stage_log(job, f"{stage}.part{part.number}"), show_progress(stage) as on_progress:
        divided = DIVIDE[stage](recipe, on_progress=on_progress, **options)
        return run_part(job, stage, divided, part, recipe=part_digest(recipe, stage), take_over=take_over)


def _next(stage: str, recipe_path: str, overrides: list[str], dataset: str) -> list[list[str]]:
    """Return the commands that one would type after a stage."""
    if stage == STAGES[-1]:
        return after_datasets(dataset)
    return [["headrace", STAGES[STAGES.index(stage) + 1], recipe_path, *overrides]]
