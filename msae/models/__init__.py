"""Models: one abstract Reconstructor, one final class a file."""
