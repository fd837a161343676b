"""Multi-scale autoencoders for time series."""

from importlib.metadata import version
from typing import Any

__all__ = [
    "InputError",
    "MultiScaleAugmenter",
    "MultiScaleDetector",
    "MultiScalePooler",
    "MultiScaleTransformer",
    "load",
]
__version__ = version("msae")


def __getattr__(name: str) -> Any:
    """Import on first use: `msae.load` needs torch and Lightning, `python -m msae.train --help` does not."""
    if name == "load":
        from msae.models.checkpoint import load

        return load
    if name == "InputError":
        from msae.errors import InputError

        return InputError
    if name == "MultiScalePooler":
        from msae.estimators.pooler import MultiScalePooler

        return MultiScalePooler
    if name.startswith("MultiScale") and name in __all__:
        from msae.estimators import base

        return getattr(base, name)
    raise AttributeError(f"module 'msae' has no attribute {name!r}")
