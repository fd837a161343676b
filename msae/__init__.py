"""Multi-scale autoencoders for time series."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # what editors and type checkers see; the names are imported when they are first used
    from msae.errors import InputError
    from msae.estimators import (
        MultiScaleAugmenter,
        MultiScaleDetector,
        MultiScaleForecaster,
        MultiScalePooler,
        MultiScaleTransformer,
    )
    from msae.models.checkpoint import load

__all__ = [
    "InputError",
    "MultiScaleAugmenter",
    "MultiScaleDetector",
    "MultiScaleForecaster",
    "MultiScalePooler",
    "MultiScaleTransformer",
    "load",
]


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used: `load` needs torch and Lightning, `--help` does not."""
    if name == "__version__":
        return import_module("importlib.metadata").version("msae")
    if name not in __all__:
        raise AttributeError(f"module 'msae' has no attribute {name!r}")
    homes = {"InputError": "msae.errors", "load": "msae.models.checkpoint"}
    return getattr(import_module(homes.get(name, "msae.estimators")), name)
