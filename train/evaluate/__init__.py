"""What trained weights are worth: validation loss, frozen features, probes."""
