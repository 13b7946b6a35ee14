"""The errors of a bad state, one family, each with the exit code that the command line returns.

A bad *request* (unknown name, value out of range) is a ValueError and exit code 2.
Every message says what is wrong, where, what was found, what was expected and what to type next.
"""

from __future__ import annotations


class CotlibError(Exception):
    """Something on disk or in a run is not as it must be."""

    exit_code = 3


class IncompleteError(CotlibError):
    """Something upstream is missing or unfinished; the message names the command that makes it."""


class CorruptError(CotlibError):
    """A file is unreadable, cut short, or not the file its digest was taken of; the message names it."""


class ForeignError(CotlibError):
    """A file was made by another configuration; the message names both and what to type."""


class DetectorError(CotlibError):
    """The evaluator fails on pictures whose answers are known, so no score of it can be trusted."""


class OutOfMemoryError(CotlibError):
    """Not even one picture at a time fits into memory."""


class NotebookError(CotlibError):
    """A notebook raised; its executed copy shows where."""

    exit_code = 1


class KernelDiedError(NotebookError):
    """The kernel process vanished, most often for want of memory."""

    exit_code = 138
