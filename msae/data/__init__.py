"""Data: windows in tensors, served by one LightningDataModule."""
