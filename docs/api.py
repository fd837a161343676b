"""Write a page for each module that Python code imports, from the docstrings: `python -W error docs/api.py FOLDER`."""

import sys
import warnings
from pathlib import Path

import lightning  # noqa: F401  (what it warns of as it is imported is not of the docstrings)
import pdoc

import msae

for name in msae.__all__:  # they are imported when they are first used
    setattr(msae, name, getattr(msae, name))
modules = [
    "msae",
    *(f"msae.{name}" for name in ("estimators", "pooling", "models", "data", "latent", "baselines", "plots", "stack")),
]
# a dataclass's constructor is made without the names that its module imports
warnings.filterwarnings("ignore", r"Error parsing type annotation ForwardRef.* for \S+\.__init__")
pdoc.render.configure(docformat="google")
pdoc.pdoc(*modules, output_directory=Path(sys.argv[1]))
print(f"{sys.argv[1]}/index.html")
