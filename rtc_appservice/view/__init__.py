"""Stage 7: what people and probes read."""
