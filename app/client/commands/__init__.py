"""The `octet` commands, one module per noun. Each asks the client and shows what it answers, nothing else."""
