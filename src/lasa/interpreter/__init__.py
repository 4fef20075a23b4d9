"""Stage 2: the Safety Semantic Interpreter."""
