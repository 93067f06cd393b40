"""Measures codecs, as tables, plots and a page. Knows no model's insides.

`metrics` measures one codec and `sweep` many, resumably; `plots` and `page` read its files.
`qinco_jax.compare` runs all of it on codecs by name.
"""
