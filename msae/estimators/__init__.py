"""Features, anomaly scores and new samples behind scikit-learn's interface, an estimator a file."""
