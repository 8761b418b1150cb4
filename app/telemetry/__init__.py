"""Prometheus instruments and logging. Measures; decides nothing."""
