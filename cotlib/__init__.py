"""Verify and reinforce image generation step by step: a runnable reproduction of arXiv:2501.13926.

Importing this loads no model and no torch; `load` is where a notebook starts.
"""

from cotlib.run import load

__all__ = ["load"]
__version__ = "0.1.0"
