"""One file per server: what a user of it would write, run in a virtual environment of its own.

They may import the engine beside them and their own server, nothing else of the repository.
"""
