"""Stage 3: semantic-conditioned alignment. Preference tables become token rows; TRL's own trainers do the rest."""
