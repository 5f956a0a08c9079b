"""Patches a Python subprocess of a program that runs under ``python -m gcbpatch``.

Python imports it at its start because the folder it is in stands first in PYTHONPATH. It takes
that folder off sys.path, patches where it may, and then lets the sitecustomize run that would
have run without it. It is read by every Python that the program starts, however old, and must
never fail in one that has no gcbpatch.
"""

import os
import sys

# Daemons are never patched; gcbpatch's own command patches itself; the helpers and children of
# multiprocessing are not patched, or get their parent's patch by another way.
PROGRAMS = ("brokerd", "dpfd", "gcbpatch")
HELPERS = "from multiprocessing."


def started():
    """Return what this Python was told to run: a module, a file, or code."""
    kind, rest = sys.argv[0], sys.argv[1:]
    told = sys.orig_argv[: len(sys.orig_argv) - len(rest)]
    if kind == "-m":
        return told[-1].rpartition("-m")[2].partition(".")[0]
    if kind == "-c":
        return told[-1]
    return os.path.basename(kind)


def may_be_patched():
    """Return whether this process is one that the patch is for."""
    if sys.version_info < (3, 11):  # noqa: UP036 (any Python may read this)
        return False
    what = started()
    return what not in PROGRAMS and not what.startswith(HELPERS)


def patch():
    """Patch this process; without gcbpatch, gevent or right settings it stays as it is."""
    try:
        from gcbpatch import patch_all
        from gcbpatch.errors import ConfigError
    except ImportError:
        return
    try:
        patch_all()
    except ImportError:
        return
    except ConfigError as error:
        sys.stderr.write("gcbpatch: " + str(error) + "; going on as if unpatched\n")


def leave():
    """Run the sitecustomize that comes next; ImportError, as ever, where there is none."""
    here = os.path.dirname(os.path.abspath(__file__))
    sys.path[:] = [path for path in sys.path if os.path.abspath(path or ".") != here]
    sys.path_importer_cache.pop(here, None)
    del sys.modules["sitecustomize"]
    __import__("sitecustomize")


try:
    if may_be_patched():
        patch()
except Exception:
    sys.excepthook(*sys.exc_info())
leave()
