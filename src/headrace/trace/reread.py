"""Steps of which no file tells which samples were replaced: read again, what was damaged is found damaged again."""

from collections.abc import Sequence

from headrace import urlpath
from headrace.shards.progress import OnProgress, Progress, no_progress
from headrace.trace.lookup import Opened
from headrace.trace.redraw import Redrawn, open_redrawer
from headrace.trace.replaced import Replacements, Story


def read_steps_again(
    opened: Opened, replacements: Replacements, steps: Sequence[int], *, on_progress: OnProgress = no_progress
) -> None:
    """Decode every sample of some steps, and tell `replacements` what was replaced.

    It counts if the step's record has this digest: else data rotted, or was mended, since. Raises ReadError where data
    is out of reach.
    """
    with open_redrawer(opened) as redrawer:
        for number, step in enumerate(steps):
            found = redrawer.redraw(opened.history.positions(step), pictures=False)
            replacements.learn(step, {one.position: _story(one) for one in found if one.damaged})
            on_progress(Progress(done=number + 1, total=len(steps), noun="steps"))


def _story(one: Redrawn) -> Story:
    own = one.damaged[0]
    return Story(own.key, urlpath.basename(own.shard), own.reason, own.message, len(one.damaged), one.key)
