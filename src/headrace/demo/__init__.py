"""A small web with a known truth, and the run that curates it: `headrace demo`. Stands on everything, as the CLI
does.
"""
