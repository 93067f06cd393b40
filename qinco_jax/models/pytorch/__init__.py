"""Checkpoints of the published PyTorch programs, read without PyTorch."""
