"""Lists of URLs as files -> numbered rows in the order of the keyed permutation."""
