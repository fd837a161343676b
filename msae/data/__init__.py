"""Data: readers of files and data sets, which all give windows as tensors in one LightningDataModule."""
