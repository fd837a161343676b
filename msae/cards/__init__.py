"""The comparisons of `python -m msae.card`, a file for each use, and the page that shows them."""
