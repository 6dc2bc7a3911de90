"""The error of a model's folder, raised by all that reads or writes one."""

from mirrorspark.clear_error import ClearError


class ModelDirectoryError(ClearError, ValueError):
    """Raised for a folder without a usable model; the message names the folder, the problem and the remedy."""
