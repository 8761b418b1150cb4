"""Serving: runners, their pool, and the way tensors reach them. Knows no HTTP, no store and no settings."""
