"""Prompts and preferences, from files, corpora and the embedded world."""
