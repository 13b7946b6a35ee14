"""Batches that shrink where memory runs out: the same answers, more slowly, instead of a lost night."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .errors import OutOfMemoryError

SIGNS = ("out of memory", "allocate memory", "not enough memory", "alloc_failed")  # of allocators that say RuntimeError


class Batches:
    """Calls a job on one batch after another; `size` is halved, for good, whenever the memory does not suffice."""

    def __init__(self, size: int, what: str):
        self.size, self.what = size, what

    def __call__(self, job: Callable[[Sequence], list], items: Sequence) -> list[Any]:
        """job(batch) -> one answer per item; the answers for all items in their order.

        Raises OutOfMemoryError where a single item does not fit; other errors of the job pass through.
        """
        done: list[Any] = []
        while len(done) < len(items):
            try:
                done += job(items[len(done) : len(done) + self.size])
            except Exception as error:
                if not is_out_of_memory(error):
                    raise
                if self.size == 1:
                    raise OutOfMemoryError(
                        f"{self.what}: not even one picture at a time fits into memory ({_first_line(error)}); "
                        "free some memory, use smaller pictures, or hide the GPU with CUDA_VISIBLE_DEVICES= in front "
                        "of the command"
                    ) from error
            else:
                continue
            # Outside of `except`, whose traceback would keep the tensors of the failed batch alive.
            self.size = max(1, self.size // 2)
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return done


def is_out_of_memory(error: BaseException) -> bool:
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error).lower() for sign in SIGNS)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
