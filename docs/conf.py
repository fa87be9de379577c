"""Sphinx configuration: `make docs` builds the site into `build/docs` without network access."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sphinx.application import Sphinx

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "_ext"), str(HERE.parent)]

import cnnspec  # noqa: E402

project = "cnnspec"
author = "the cnnspec authors"
copyright = "2026, the cnnspec authors"
version = release = cnnspec.__version__
repository = "OWNER/cnnspec"
"""The repository on GitHub. Pages name it `OWNER/cnnspec`; the site shows this value, so set the owner here only."""

extensions = ["cnn_lexer", "playground", "myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_ext", "images/*.py", "playground"]
nitpicky = False
highlight_language = "text"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 4

autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_default_options = {"undoc-members": False}
autodoc_class_signature = "separated"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 100
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False

html_theme = "furo"
html_title = "cnnspec"
html_static_path = ["_static"]
html_css_files = ["cnnspec.css"]
html_copy_source = False
html_use_index = False
html_show_sourcelink = False
html_show_sphinx = False


def write_code_as_rst(_app: Sphinx, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Replace the single backticks of docstrings, which are Markdown, by RST literals."""
    text = re.sub(r"(?<!`)`([^`]+)`(?!`)(?=(\w?))", lambda m: f"``{m[1]}``" + ("\\ " if m[2] else ""), "\n".join(lines))
    lines[:] = text.split("\n")


def name_repository(_app: Sphinx, _page: str, source: list[str]) -> None:
    """Write the address of the repository into a page, which needs no note on it then."""
    if repository != "OWNER/cnnspec":
        text = re.sub(r"There is no public repository yet:[^.]*`OWNER`\.\s*", "", source[0])
        source[0] = text.replace("OWNER/cnnspec", repository)


def setup(app: Sphinx) -> None:
    app.connect("source-read", name_repository)
    app.connect("autodoc-process-docstring", write_code_as_rst)
