"""Folders, tars and parquet files of other people, copied into a dataset."""
