"""From a URL to bytes: addresses checked and pinned, answers capped, refusals recorded."""
