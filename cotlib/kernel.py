"""The kernel that the chain starts: ipykernel's own, which on Linux ends at once when the chain is killed.

Elsewhere ipykernel notices after two or three seconds, in which it would go on writing beside the next chain's kernel.
"""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h

if __name__ == "__main__":
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.environ.get("JPY_PARENT_PID", str(os.getppid())) != str(os.getppid()):
            sys.exit("the chain was killed while its kernel started")
    runpy.run_module("ipykernel_launcher", run_name="__main__")
