"""Judges for the answers of real models; none of them alone settles an attack success rate."""
