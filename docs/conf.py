"""The documentation site: `uv run --extra docs sphinx-build -W -b html docs build/docs`."""

import inspect
import re
import shutil
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS), str(DOCS.parent)]

import commands  # it stands beside this file

import msae

project = "msae"
release = msae.__version__
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
templates_path = ["_templates"]
exclude_patterns = ["_templates"]
suppress_warnings = ["config.cache"]  # `autosummary_context` is a function, and the build starts anew each time
smartquotes = False  # options begin with two hyphens

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
nb_execution_mode = "off"  # the outputs that are kept in the notebooks are shown

default_role = "py:obj"  # docstrings have names in single backticks, which become links where there is a page
autodoc_typehints_format = "short"
python_maximum_signature_line_length = 80
napoleon_numpy_docstring = False

html_theme = "furo"
html_title = f"msae {release}"
html_favicon = "_static/icon.svg"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}


def documented_members(module: str, name: str) -> list[str]:
    """Public methods and properties of a class that the package defines and documents, inherited ones included."""
    cls = getattr(import_module(module), name)
    owners = [owner for owner in cls.__mro__ if owner.__module__.startswith("msae.")]
    names = dict.fromkeys(member for owner in owners for member in vars(owner) if not member.startswith("_"))
    members = {member: inspect.getattr_static(cls, member) for member in names}
    return [
        member
        for member, value in members.items()
        if (inspect.isroutine(value) or isinstance(value, property)) and value.__doc__
    ]


autosummary_context = {"documented_members": documented_members}


def generate(app: Sphinx) -> None:
    """Write the pages that are made of other files: commands, notebooks and studies."""
    docs = Path(app.srcdir)
    commands.write(docs / "reference" / "commands")
    for old in (docs / "notebooks").glob("*.ipynb"):
        old.unlink()
    for notebook in (docs.parent / "notebooks").glob("*.ipynb"):
        shutil.copy(notebook, docs / "notebooks")
    shutil.rmtree(docs / "studies" / "_generated", ignore_errors=True)
    if find_spec("studies") and find_spec("studies.pages"):
        import_module("studies.pages").build(docs / "studies" / "_generated")
    else:
        (docs / "studies" / "_generated" / "none").mkdir(parents=True)
        for page in ("index.md", "none/index.md"):
            (docs / "studies" / "_generated" / page).write_text("# No studies yet\n")


ALIASES = {
    r"~numpy\._typing\._array_like\._Buffer \| .*?\[complex \| bytes \| str\]": "ArrayLike",
    r"~numpy\.ndarray\[tuple\[~typing\.Any, \.\.\.\], ~numpy\.dtype\[([^\]]*)\]\]": r"NDArray[\1]",
}
"""NumPy's types as signatures spell them out, and by name."""


def short_types(*event: Any) -> tuple[str | None, ...]:
    """The arguments and the return value of a signature with NumPy's types by name."""
    texts: list[str | None] = [*event[-2:]]
    for long, short in ALIASES.items():
        texts = [text and re.sub(long, short, text) for text in texts]
    return tuple(texts)


def dashes(_: Sphinx, document: nodes.document) -> None:
    """A dash between a parameter's name and its meaning."""
    for text in [text for text in document.findall(nodes.Text) if text == " -- "]:
        text.parent.replace(text, nodes.Text(" – "))  # noqa: RUF001


def links_inside(_: Sphinx, __: str, source: list[str]) -> None:
    """Links to studies and to files of the repository, which work on a code host, as links to pages of the site."""
    source[0] = re.sub(r"\]\((?:\.\./)+studies/(\w+)/README\.md", r"](/studies/_generated/\1/index.md", source[0])
    source[0] = re.sub(r"\[([^]]+)\]\((?:\.\./)+conf/[^)]*\)", r"`\1`", source[0])


def setup(app: Sphinx) -> dict[str, Any]:
    """Generate pages before Sphinx, and autosummary, look for them."""
    app.connect("autodoc-process-signature", short_types)
    app.connect("doctree-read", dashes)
    app.connect("source-read", links_inside)
    app.connect("builder-inited", generate, priority=100)
    return {"parallel_read_safe": True}
