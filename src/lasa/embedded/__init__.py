"""The embedded model: its little world, its training, its shipped weights."""
