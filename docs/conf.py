"""The site: `make docs` builds it into build/docs."""

import shutil
from pathlib import Path

from qinco_jax.version import __version__

HERE = Path(__file__).parent
NOTEBOOKS = HERE / "notebooks"  # Sphinx takes pages from this folder alone

project, author, version = "qinco_jax", "the qinco_jax authors", __version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.doctest", "sphinx.ext.napoleon"]
exclude_patterns = ["_static"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"  # the tests execute the notebooks, which hold their outputs
nb_merge_streams = True

default_role = "code"  # of docstrings, which are in Markdown's way
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
napoleon_numpy_docstring = False

html_theme = "sphinx_book_theme"
html_title = "qinco_jax"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_theme_options = {
    "repository_url": "https://github.com/qinco-jax/qinco_jax",
    "use_repository_button": True,
    "use_issues_button": True,
    "path_to_docs": "docs",
    "show_toc_level": 2,
    "launch_buttons": {"colab_url": "https://colab.research.google.com"},
}


def setup(app):
    """Docstrings are plain text, in which |x| is the length of x and not a substitution."""
    app.connect("autodoc-process-docstring", lambda *event: _escape(event[-1]))


def _escape(lines):
    lines[:] = [line.replace("|", r"\|").replace("_...", r"\_...") for line in lines]


shutil.copytree(HERE.parent / "notebooks", NOTEBOOKS, dirs_exist_ok=True)
