"""Sphinx configuration: the reference is made from the code, so that it can't drift from it."""

import sys
from importlib.metadata import version as installed_version
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

project = "bluesky-cdinn"
author = "the bluesky-cdinn developers"
copyright = "2026, the bluesky-cdinn developers"
version = release = installed_version("bluesky-cdinn")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "_extensions.settings_and_cli",
]
exclude_patterns = ["_build", "_extensions", "_templates", "reference/generated/settings.md"]
templates_path = ["_templates"]

myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

autosummary_generate = True
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": True}
autodoc_preserve_defaults = True
napoleon_google_docstring = False
napoleon_use_rtype = False
python_use_unqualified_type_names = True

# Nitpicky mode checks every reference into this package; other packages' inventories would need the network.
nitpick_ignore_regex = [(r"py:.*", r"(?!bluesky_cdinn).*"), (r"py:.*", r"bluesky_cdinn\.(.*\.)?_.*")]

html_theme = "furo"
html_title = f"bluesky-cdinn {release}"
html_show_copyright = False
html_show_sphinx = False
