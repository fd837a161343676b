"""Write a page for each public name and module, from the docstrings: `python -W error docs/api.py FOLDER`."""

import sys
import warnings
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

import lightning  # noqa: F401  (what it warns of as it is imported is not of the docstrings)
import pdoc

import msae

modules, links = ["msae"], [msae.__doc__, ""]
for name in msae.__all__:  # pdoc's pages are of modules: each name has one that holds nothing else
    page = ModuleType(f"msae.{name}")
    page.__spec__, page.__dict__["__all__"] = ModuleSpec(page.__name__, None), [name]
    setattr(page, name, getattr(msae, name))
    setattr(msae, name, getattr(msae, name))  # it is imported when it is first used
    sys.modules[page.__name__] = page
    modules.append(page.__name__)
    links.append(f"- [`{name}`](msae/{name}.html)")
msae.__doc__ = "\n".join(map(str, links))
modules += [f"msae.{name}" for name in ("estimators", "models", "data", "uses", "baselines", "plots", "runs")]
# a dataclass's constructor is made without the names that its module imports
warnings.filterwarnings("ignore", r"Error parsing type annotation ForwardRef.* for \S+\.__init__")
pdoc.render.configure(docformat="google")
pdoc.pdoc(*modules, output_directory=Path(sys.argv[1]))
print(f"{sys.argv[1]}/index.html")
