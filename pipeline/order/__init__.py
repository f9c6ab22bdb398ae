"""Which sample stands at which position: arithmetic on numbers, no I/O."""
