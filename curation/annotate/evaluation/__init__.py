"""What detectors find of photographs whose faces somebody marked."""
