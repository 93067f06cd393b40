"""Files of vectors: formats, containers, shards, and rows that are read on demand."""
