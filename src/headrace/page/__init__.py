"""One-file HTML pages: sections, tables, plots, pictures; no other file, no network."""
