"""Serving the guard: loading it from a run, and an OpenAI-compatible server over it."""
