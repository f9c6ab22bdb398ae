"""Pages of several steps of one run, each in a file of its own."""

import logging
from collections.abc import Mapping

from headrace import atomic
from headrace.text import one_line
from headrace.trace.history import open_history
from headrace.trace.lookup import open_sources
from headrace.trace.page import render
from headrace.trace.replaced import read_replacements
from headrace.trace.step import trace_step

log = logging.getLogger(__name__)


def write_step_pages(run: str, pages: Mapping[int, str], *, pictures: int) -> dict[int, str]:
    """Write the page of each step of `pages` where that says; return for each why it could not be traced, or ''.

    What is damaged or gone costs its own step, and no other.
    """
    try:
        history = open_history(run)
        opened = open_sources(history)
        replacements = read_replacements(opened)
    except (ValueError, OSError) as error:
        return dict.fromkeys(pages, one_line(str(error)))
    found = {}
    for step, place in pages.items():
        try:
            traced = trace_step(opened, replacements, history.positions(step), pictures=pictures)
            page = render(traced, name=run, global_batch=history.global_batch, num_views=len(opened.views))
            atomic.write_atomic(place, page)
            found[step] = ""
        except (ValueError, OSError) as error:
            found[step] = one_line(str(error))
            log.info("step %d of %s cannot be traced: %s", step, run, found[step])
    return found
