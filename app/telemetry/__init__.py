"""Prometheus instruments, traces and logging. Measures; decides nothing."""
