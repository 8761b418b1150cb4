"""The runner: a process that holds one loaded variant and answers its gateway. No HTTP, no store, no queue."""
