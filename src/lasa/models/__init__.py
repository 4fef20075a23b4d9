"""Any Hugging Face causal LM: loaded, rendered, read, and generating."""
