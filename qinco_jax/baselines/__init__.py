"""Other people's codecs to compare with: UNQ here in JAX, the rest through Faiss."""
