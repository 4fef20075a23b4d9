"""Score, decision, condition: what training and inference share."""
