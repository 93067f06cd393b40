"""Codecs: this library's models, Faiss's and UNQ behind one interface, and by name."""
