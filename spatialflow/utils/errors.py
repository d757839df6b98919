"""Errors that a user can correct; a program prints them in one line, without a stack trace."""


class DataError(ValueError):
    """A file of a data set is missing, broken, or contradicts another file."""


class CheckpointError(ValueError):
    """A file of weights is missing, broken, unsafe to read, or belongs to another model."""


class NonFiniteError(FloatingPointError):
    """A loss, a gradient or an image contains NaN or infinity."""
