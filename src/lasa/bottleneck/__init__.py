"""Stage 1: the layer whose geometry follows meaning, not language."""
