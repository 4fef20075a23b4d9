"""A run: its recipe, its folder, its systems."""
