"""Models on disk and in other programs: Orbax, safetensors, PyTorch, Faiss, StableHLO."""
