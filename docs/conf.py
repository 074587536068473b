"""How Sphinx builds the documentation."""

import trainlab

project = "trainlab"
author = "the trainlab developers"
copyright = author
release = trainlab.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"trainlab {release}"
html_static_path = ["_static"]
html_css_files = ["tables.css"]

# The order of `__all__`; types stand in the signatures, as they stand in the code.
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_custom_sections = ["Source"]
