"""Features, anomaly scores, new samples and forecasts behind scikit-learn's interface, one estimator a file."""

from msae.estimators.augmenter import MultiScaleAugmenter
from msae.estimators.detector import MultiScaleDetector
from msae.estimators.forecaster import MultiScaleForecaster
from msae.estimators.pooler import MultiScalePooler
from msae.estimators.transformer import MultiScaleTransformer

__all__ = [
    "MultiScaleAugmenter",
    "MultiScaleDetector",
    "MultiScaleForecaster",
    "MultiScalePooler",
    "MultiScaleTransformer",
]
