"""What Octet talks about, in the standard library alone: records that are valid by construction."""
