"""Vectors from files and named sets, and the order in which training reads them."""
