"""Models, datasets, variants, routing and finished jobs, kept in the store. Holds no live state."""
