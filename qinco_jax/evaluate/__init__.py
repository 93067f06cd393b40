"""Measures codecs through `Codec` alone, and shows results as tables, plots and a page.

`metrics` measures one codec, `sweep` trains and measures many and writes `results`, which `tables`,
`plots` and `page` show. `compare` runs all of it on codecs by name.
"""
