"""Errors that a user can correct; a program prints them in one line, without a stack trace.

Any other error is a bug, also a plain ``ValueError``.
"""


class ConfigError(ValueError):
    """A key of a config, an argument of a program, or what they name is not allowed."""


class DataError(ValueError):
    """A file of a data set is missing, broken, or contradicts another file."""


class CheckpointError(ValueError):
    """A file of weights is missing, broken, unsafe to read, or belongs to another model."""


class ProcessError(ValueError):
    """A process that a program has started has failed, and has said why."""


class NonFiniteError(FloatingPointError):
    """A loss, a gradient or an image contains NaN or infinity."""
