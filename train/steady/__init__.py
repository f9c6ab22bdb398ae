"""What keeps a run going: bad steps, planned changes, checks at the start."""
