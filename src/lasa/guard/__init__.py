"""Stage 4: read, decide, condition, go on, in one pass."""
