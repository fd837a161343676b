"""The uses of a trained latent, as functions of tensors."""
