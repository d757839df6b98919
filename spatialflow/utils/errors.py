"""Errors that a user can mend: a program says them in one line, without a stack trace."""


class DataError(ValueError):
    """A file of a data set is missing, broken, or says something else than another one."""


class CheckpointError(ValueError):
    """A file of weights is missing, broken, unsafe to read, or of another model."""


class NonFiniteError(FloatingPointError):
    """A loss, a gradient or an image holds NaN or infinity."""
