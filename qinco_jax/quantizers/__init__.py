"""The papers' algorithms, from distances to encode and decode: arrays in, arrays out."""
