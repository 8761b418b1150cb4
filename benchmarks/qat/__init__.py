"""What `benchmarks.training` is made of: its subject, the runs, what is counted, and the tables."""
