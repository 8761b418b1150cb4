"""Octet beside other inference servers: the same engine, the same model, the same two threads, every reply checked."""
