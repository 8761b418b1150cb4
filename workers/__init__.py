"""Everything of Octet that needs a machine-learning library: jobs, toolchains, measurements, runners."""
