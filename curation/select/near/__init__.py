"""Near pairs among many hashes: distinct hashes as nodes, tables of sampled bits, pairs, and the forest they make."""
