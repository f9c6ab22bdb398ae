"""Which rows a report shows: pairs, pairs beyond the distance, extremes, dropped rows by step."""
