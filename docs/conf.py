"""Configuration of the documentation site: `sphinx-build -W docs site`."""

import sys
from pathlib import Path

import compressrs

sys.path.insert(0, str(Path(__file__).parent / "_ext"))

project = "compressrs"
copyright = "the compressrs developers"
version = release = compressrs.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "sphinx_copybutton",
    # In docs/_ext.
    "api_pages",
    "mathml",
    "page_parts",
]
# docs/searching.md is docs/search.md, whose name is that of Sphinx's page of results.
exclude_patterns = ["_ext", "search.md"]
# `name` in docstrings links to what it names, where that is public.
default_role = "py:obj"

# Markdown as GitHub shows it.
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_fence_as_directive = ["math"]
myst_heading_anchors = 4
myst_links_external_new_tab = False

autodoc_typehints = "none"
autodoc_member_order = "bysource"
autosummary_generate = False
# Pages list members themselves; docs/_ext/api_pages.py says which.
numpydoc_show_class_members = False
toc_object_entries = False
suppress_warnings = ["myst.xref_ambiguous"]

html_theme = "furo"
html_title = f"compressrs {release}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sourcelink = False
html_show_sphinx = False
pygments_style = "friendly"
pygments_dark_style = "monokai"
copybutton_exclude = ".linenos, .gp, .go"
