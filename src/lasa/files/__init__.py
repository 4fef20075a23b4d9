"""Files: tables in, artefacts out."""
