"""The annotators, one a file."""
