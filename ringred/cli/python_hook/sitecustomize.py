"""Runs at the start of a Python rank under ``ringred run``: says so when the rank ends because of an exception.

MPI finalises when Python ends and then waits for all ranks. A rank that has printed its traceback would therefore hang
with those that wait for it. The note left here tells the rank's wrapper that the rank has failed already.
Only the rank itself is touched: its own children do not see this directory.
"""

import atexit
import importlib
import os
import sys
from types import ModuleType

HERE = os.path.dirname(os.path.abspath(__file__))


def nobody_caught_it() -> bool:
    """True if an exception left the program's outermost frame. (Test runners set sys.last_value further in.)"""
    error = getattr(sys, "last_value", None)
    trace = getattr(error, "__traceback__", None)
    return trace is not None and trace.tb_frame.f_code.co_name in ("<module>", "_run_module_as_main")


def leave_note_at_exit(process: int, note: str) -> None:
    """Create the file ``note`` if the interpreter ends after an exception that nobody caught."""
    if os.getpid() == process and nobody_caught_it():
        try:
            os.close(os.open(note, os.O_CREAT | os.O_WRONLY, 0o600))
        except OSError:  # the launcher is gone: there is nobody left to tell
            return


def step_aside() -> None:
    """Take this directory off the path, so that children and a ``sitecustomize`` of the user's own are not affected."""
    sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry or os.curdir) != HERE]
    rest = [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry and entry != HERE]
    if rest:
        os.environ["PYTHONPATH"] = os.pathsep.join(rest)
    else:
        os.environ.pop("PYTHONPATH", None)
    this: ModuleType | None = sys.modules.pop("sitecustomize", None)
    try:
        importlib.import_module("sitecustomize")  # the user's own, if there is one
    except ImportError:
        if this is not None:
            sys.modules["sitecustomize"] = this


_note = os.environ.pop("RINGRED_RUN_NOTE", "")
step_aside()
if _note:
    atexit.register(leave_note_at_exit, os.getpid(), _note)
