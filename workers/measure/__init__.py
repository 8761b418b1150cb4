"""Facts about an artifact, measured on the artifact itself by the engine that serves it."""
