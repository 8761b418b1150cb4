"""Datasets as streams of rows, and images as input rows. Knows nothing of models beyond their signature."""
