"""Pages for people, made from the domain's records. Knows no HTTP and no store."""
