"""Measures codecs at every rate, as tables and plots. Knows no model's insides."""
