"""Errors that the commands report without a traceback, and Python code as what they derive from."""


class WorkersKilledError(RuntimeError):
    """Processes that do the work are killed again and again, as by a system short of memory."""
