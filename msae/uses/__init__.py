"""What a trained latent is for, as functions of tensors."""
