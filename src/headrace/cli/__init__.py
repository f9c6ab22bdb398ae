"""The command line. One module a command; each imports what it needs inside its function, so `--help` answers at
once.
"""
