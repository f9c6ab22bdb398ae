"""Stage 5: the ledger and the index as numbers, plots and pictures in one HTML file."""
