"""Runs ids of one class of CPython's own tests in this process: plain, under gevent or gcbpatch.

The patch comes first, at the top of the program as a user's would, so that spawned children,
which import this file again, come up as the program did. Each event is one line of JSON in
the report file. It must never decide what a result is worth.
"""

# ruff: noqa: E402

from __future__ import annotations

import os

MODE = os.environ.get("STDLIB_MODE", "plain")

if MODE == "gevent":
    import gevent.monkey

    gevent.monkey.patch_all()
elif MODE in ("gcbpatch", "brokered"):
    import gcbpatch

    gcbpatch.patch_all()

import contextlib
import faulthandler
import json
import multiprocessing.util
import signal
import sys
import time
import unittest
from collections.abc import Callable, Iterator
from typing import Any

RESOURCES = ["network"]
"""test_socketserver and a few others ask for it although they stay on this machine."""


class Reporter(unittest.TestResult):
    """Writes a line when an id starts and one when it ends; forked children write nothing."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self._out = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._pid = os.getpid()
        self._verdict, self._detail = "", ""

    def say(self, event: str, test: str, **more: Any) -> None:
        """One line, in one write, so that a death cannot leave half of one."""
        if os.getpid() == self._pid:
            line = json.dumps({"event": event, "id": test, "at": time.monotonic()} | more)
            os.write(self._out, line.encode() + b"\n")

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        self._verdict, self._detail = "ok", ""
        self.say("start", test.id())

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        self.say("end", test.id(), verdict=self._verdict, detail=self._detail)
        self._verdict = ""

    def _note(self, verdict: str, test: Any, detail: str) -> None:
        if not self._verdict:  # no test runs: a fixture of the class or the module
            self.say("fixture", test.id(), verdict=verdict, detail=detail)
        elif self._verdict in ("ok", "skip"):
            self._verdict, self._detail = verdict, detail

    def addError(self, test: Any, err: Any) -> None:
        self._note("error", test, self._exc_info_to_string(err, test))  # type: ignore[attr-defined]

    def addFailure(self, test: Any, err: Any) -> None:
        self._note("fail", test, self._exc_info_to_string(err, test))  # type: ignore[attr-defined]

    def addSubTest(self, test: Any, subtest: Any, err: Any) -> None:
        if err is None:
            return
        failed = issubclass(err[0], test.failureException)
        (self.addFailure if failed else self.addError)(test, err)

    def addSkip(self, test: Any, reason: str) -> None:
        if not self._verdict and isinstance(test, unittest.TestCase):
            self.startTest(test)  # Python 3.12.1 ends what it skips, and has not started it
        self._note("skip", test, reason)

    def addUnexpectedSuccess(self, test: Any) -> None:
        self._note("fail", test, "succeeded, where a failure was expected")


def flatten(suite: Any) -> Iterator[unittest.TestCase]:
    """The tests of a suite of suites, in its order."""
    for part in suite:
        if isinstance(part, unittest.TestSuite):
            yield from flatten(part)
        else:
            yield part


def load(module: str, skipped: Callable[[str], None]) -> list[unittest.TestCase]:
    """All tests of a module, in unittest's order; a module may skip itself."""
    try:
        __import__(module)
    except unittest.SkipTest as reason:
        skipped(str(reason))
        return []
    loader = unittest.TestLoader()
    found = sys.modules[module]
    loaded = [
        loader.loadTestsFromTestCase(part)
        for part in vars(found).values()
        if isinstance(part, type) and issubclass(part, unittest.TestCase)
    ]
    # A class may be there under two names, and some are abstract bases from elsewhere.
    here = {t.id(): t for t in flatten(loaded) if type(t).__module__ == module}
    return list(here.values())


def tell_greenlets(*_: Any) -> None:
    """Print where each greenlet waits, for who looks into a hang."""
    if MODE != "plain":
        import gevent.util

        gevent.util.print_run_info()


def prepare() -> None:
    """What CPython's own runner sets, and what counts threads that greenlets are not."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
    signal.signal(signal.SIGUSR1, tell_greenlets)
    faulthandler.register(signal.SIGUSR1, all_threads=True, chain=True)
    import test.support as support
    from test.support import threading_helper

    support.use_resources = RESOURCES
    support.verbose = 0
    support.print_warning = lambda message: None
    # They count with _thread._count(), which sees gevent's thread pool and no greenlet. The
    # same in all modes.
    helper: Any = threading_helper
    helper.wait_threads_exit = contextlib.nullcontext
    helper.threading_setup = lambda: (1, ())
    helper.threading_cleanup = lambda *_: None
    # It waits for the resource tracker to see the end of a pipe, which gevent's os.close puts
    # off until the hub has an event: nothing but its tests ever does that.
    tidy: Any = multiprocessing.util
    tidy._cleanup_tests = lambda: None


def listing(modules: list[str]) -> None:
    """Print what there is to run: a JSON object of module to its ids, or to why there is none."""
    found: dict[str, Any] = {}
    for module in modules:
        reasons: list[str] = []
        tests = load(module, reasons.append)
        found[module] = reasons[0] if reasons else [test.id() for test in tests]
    print(json.dumps(found))


def run(module: str, report: str, ids: set[str]) -> None:
    """Run these ids of a module and no other, in its order."""
    wanted = [test for test in load(module, lambda reason: None) if test.id() in ids]
    unittest.TestSuite(wanted).run(Reporter(report))


def main(arguments: list[str]) -> None:
    """worker --list MODULE… | worker MODULE REPORT ID…"""
    prepare()
    if arguments[0] == "--list":
        listing(arguments[1:])
    else:
        module, report, *ids = arguments
        run(module, report, set(ids))


if __name__ == "__main__":
    main(sys.argv[1:])
