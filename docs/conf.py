"""How Sphinx makes the documentation: ``python -m sphinx -W docs docs/_build``."""

from importlib.metadata import version as installed_version

project = "ngi_gevent"
author = "The ngi_gevent maintainers"
project_copyright = "the ngi_gevent maintainers"
release = version = installed_version("ngi_gevent")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.intersphinx"]
exclude_patterns = ["_build"]
nitpicky = True

html_theme = "furo"
html_title = f"ngi_gevent {version}"

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
