"""What a report writes for others: a table for Embedding Atlas, a public summary."""
