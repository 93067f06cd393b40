"""Models from other programs."""
