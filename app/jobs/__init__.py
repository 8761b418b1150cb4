"""Jobs while they can change: their live state and events in Redis, and the queue (`rq`) that hands them out."""
