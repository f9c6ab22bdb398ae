"""How many cores one process of several may take."""

import os


def own_cores() -> int:
    """Return this process's part of the cores it may use: those of a host are shared by the ranks on it."""
    ranks_here = os.environ.get("LOCAL_WORLD_SIZE", "1")
    return max(1, len(os.sched_getaffinity(0)) // max(1, int(ranks_here) if ranks_here.isdecimal() else 1))
