"""Signals that ask a run to stop: SIGTERM, SIGINT (Ctrl-C) and SIGHUP (the terminal is gone).

The first lets the current iteration end, after which a checkpoint is written; an evaluation ends at once. One that
comes later than `SAME_STOP` seconds after it ends the process at once. Exit codes are those of a shell: 128 + the
signal's number, so 143, 130 and 129.
"""

import errno
import io
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from shared.errors import UserError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
# Seconds. A terminal sends Ctrl-C to all processes, and a launcher passes it on to its own: that is one stop, not two
SAME_STOP = 1.0


class RunStopped(UserError):
    """A signal ended the run."""

    label = "stopped"

    def __init__(self, signum: int, sentence: str, everywhere: bool = True):
        super().__init__(f"{signal.Signals(signum).name}: {sentence}")
        self.exit_code, self.everywhere = 128 + signum, everywhere


class Interrupted(BaseException):
    """Raised within `StopSignals.interrupting`. No Exception: nobody in between is to handle it."""


class StopSignals:
    """Within `with StopSignals() as stop`, `stop.signal` is the signal that has come, or None."""

    def __init__(self, announce: bool = True):
        """announce: whether to say on stderr that a signal has been heard."""
        self.signal: int | None = None
        self._announce, self._since, self._interrupting = announce, 0.0, False
        self._before: dict[int, object] = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # others may not, and get none
            for signum in SIGNALS:
                before = signal.getsignal(signum)
                if before is not signal.SIG_IGN:  # as nohup has it
                    self._before[signum] = before
                    signal.signal(signum, self._heard)
        return self

    def __exit__(self, *exc):
        for signum, before in self._before.items():
            signal.signal(signum, before)

    def _heard(self, signum: int, frame) -> None:
        now = time.monotonic()
        if self.signal is None:
            self.signal, self._since = signum, now
            if self._announce:
                name = signal.Signals(signum).name
                _say(f"{name}: the iteration is brought to its end and saved; another one stops at once.")
        elif now - self._since > SAME_STOP:
            end_by(signum)
        if self._interrupting:
            self._interrupting = False  # once: the signal to all processes may come twice
            raise Interrupted

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """In the block a signal raises Interrupted, also one that has come before."""
        try:
            self._interrupting = True
            if self.signal is not None:
                raise Interrupted
            yield
        finally:
            self._interrupting = False


def end_by(signum: int) -> None:
    """What the signal does to a process that does not handle it."""
    signal.signal(signum, signal.SIG_DFL)
    os.kill(os.getpid(), signum)


def _say(sentence: str) -> None:
    """From a signal handler: without the buffers that the program may be writing to at this moment."""
    with suppress(OSError):  # the terminal is gone
        os.write(sys.__stderr__.fileno(), f"\n{sentence}\n".encode())


class _Outlived(io.FileIO):
    """A stream whose terminal, or reader, may be gone: what is written then is lost."""

    def write(self, data) -> int:
        try:
            return super().write(data)
        except OSError as e:
            if e.errno not in (errno.EIO, errno.EPIPE):
                raise
            return len(data)


@contextmanager
def outliving_terminal() -> Iterator[None]:
    """In the block stdout and stderr raise no error once the terminal is closed or a pipe's reader has ended, so that
    this neither ends a run nor changes its exit code."""
    before = {}
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is not None and stream is getattr(sys, f"__{name}__"):  # and nobody's replacement
            stream.flush()
            before[name], raw = stream, _Outlived(stream.fileno(), "wb", closefd=False)
            text = io.TextIOWrapper(io.BufferedWriter(raw), stream.encoding, stream.errors, line_buffering=True)
            setattr(sys, name, text)
    try:
        yield
    finally:
        for name, stream in before.items():
            getattr(sys, name).flush()
            setattr(sys, name, stream)


@contextmanager
def passed_on() -> Iterator[None]:
    """In the block signals go to the child processes, which end as they see fit."""

    def pass_on(signum: int, frame) -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid, signum)

    before = {s: signal.signal(s, pass_on) for s in SIGNALS if signal.getsignal(s) is not signal.SIG_IGN}
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
