"""How Sphinx makes the documentation: ``python -m sphinx -W docs docs/_build``."""

import re
from importlib.metadata import version as installed_version

from ngi_gevent import interfaces

project = "ngi_gevent"
author = "The ngi_gevent maintainers"
project_copyright = "the ngi_gevent maintainers"
release = version = installed_version("ngi_gevent")

extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
nitpicky = True
nitpick_ignore_regex = [
    # Of the standard library, pytest and gevent, which have pages that building these does not need to reach.
    ("py:class", r"collections\.abc\.\w+|AbstractContextManager|SSLContext|Random|socket\.socket"),
    ("py:class", r"_pytest\.fixtures\.\w+|gevent\.Greenlet|(prometheus_client\.\w+\.)?Metric"),
    # Type variables, and what is only ever made by the package.
    (
        "py:class",
        r"(ngi_gevent\.[\w.]+\.)?(_Class|Adapter|AnyAddress|Flag|Instance)|ngi_gevent\.testing\.leaks\.Watched",
    ),
]

html_theme = "furo"
html_title = f"ngi_gevent {version}"
html_static_path = ["_static"]
html_css_files = ["pages.css"]

# Of accessible-pygments, which comes with furo.  Nothing in them is underlined, as if it were a link.
pygments_style, pygments_dark_style = "a11y-light", "a11y-dark"

myst_enable_extensions = ["colon_fence", "deflist", "fieldlist"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
python_maximum_signature_line_length = 100
python_use_unqualified_type_names = True

#: Classes that are not public, and the interface that signatures show in place of each.
KNOWN_BY = {"DatagramListener": "IUDPListener", "StreamListener": "IListener"}


def readable_signature(app, what, name, thing, options, signature, returned):
    """Show functions and classes that are defaults by their names, and no arguments where a reader gives none."""
    if signature is None:
        return None
    if signature == "()" or getattr(thing, "_is_protocol", False) or what == "exception":
        return ("", None) if what in ("class", "exception") else None
    signature = re.sub(r"<bound method Implementation\.(\w+) of .*?>>", r"ngi_gevent.\1", signature)
    return re.sub(r"<class '[\w.]*?(\w+)'>", r"\1", signature), KNOWN_BY.get(returned, returned)


def find_interface(app, environment, node, content):
    """Resolve the name of an interface, as signatures have it: without the module that it comes from."""
    if node.get("refdomain") != "py" or node["reftarget"] not in interfaces.__all__:
        return None
    target = f"{interfaces.__name__}.{node['reftarget']}"
    python = environment.domains["py"]
    return python.resolve_xref(environment, node["refdoc"], app.builder, "obj", target, node, content)


def setup(app):
    app.connect("autodoc-process-signature", readable_signature)
    app.connect("missing-reference", find_interface)
