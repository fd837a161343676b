"""Features, anomaly scores and new samples behind scikit-learn's interface, one estimator a file."""

from msae.estimators.augmenter import MultiScaleAugmenter
from msae.estimators.detector import MultiScaleDetector
from msae.estimators.pooler import MultiScalePooler
from msae.estimators.transformer import MultiScaleTransformer

__all__ = ["MultiScaleAugmenter", "MultiScaleDetector", "MultiScalePooler", "MultiScaleTransformer"]
