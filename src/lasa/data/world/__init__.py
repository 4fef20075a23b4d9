"""The little world of the embedded model: deeds, ten languages, splits fixed by hash, and an exact judge."""
