"""Request and response bodies that are not domain records. Requests forbid unknown fields."""
