"""Every error a user can meet. Each says what was expected, what came, where, and what to do."""


class TransfuseError(Exception):
    """Base of all errors that Transfuse raises on purpose; the command line prints it without a traceback."""


class ModelError(TransfuseError, ValueError):
    """A model reference cannot be loaded."""


class DocumentError(TransfuseError, ValueError):
    """A document cannot be read."""


class DataError(TransfuseError, ValueError):
    """A facts, Q&A or text file is malformed or inconsistent."""


class RecipeError(TransfuseError, ValueError):
    """A recipe or a flag is invalid."""


class RunFolderError(TransfuseError, OSError):
    """A run folder cannot be used: it belongs to another run, is unwritable, or the disk is full."""


class IndexFolderError(TransfuseError, ValueError):
    """A knowledge index cannot be used: none is there, it is damaged, or made with another embedding model."""


class CacheError(TransfuseError, ValueError):
    """A cache of distributions cannot be used: none is there, it is damaged, or of another model or other texts."""


class TrainingError(TransfuseError, RuntimeError):
    """Training cannot go on (the loss is not finite, no record fits the context)."""


class GenerationError(TransfuseError, RuntimeError):
    """A generator cannot answer: no request to it can succeed until something is changed."""


class BudgetError(GenerationError):
    """The budget of requests or tokens is spent."""


class MissingExtraError(TransfuseError, ImportError):
    """An optional part is not installed; the message names the extra."""
