"""The errors a user can cause; every message says what was wrong, where, and what to do."""


class LasaError(Exception):
    """Base of all errors that end in one clear message and exit code 2."""


class DataError(LasaError):
    """A prompt table, benchmark file or answer cannot be read as what it claims to be."""


class ModelError(LasaError):
    """A model folder, its tokenizer or its architecture does not fit what is asked of it."""


class RecipeError(LasaError):
    """A setting is missing, unknown or out of bounds."""


class ArtifactError(LasaError):
    """A stored artefact is damaged, incomplete, or belongs to another model, recipe or run."""


class GuardError(LasaError):
    """The guard cannot do its work; nothing may be generated without it."""


class MissingExtraError(LasaError):
    """A package is not installed that an extra of lasa brings."""


class TrainingError(LasaError):
    """A training went wrong; nothing of it is kept."""
