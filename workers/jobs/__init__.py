"""What a worker does with a job: one module per kind, around the stages that run in the sandbox."""
