"""What stages are told and what they answer: JSON records, each a spec or a result. No library is imported here."""
