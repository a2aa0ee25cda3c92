"""Ctrl-C and SIGTERM in a program: one line that says what is kept and how to go on, exit codes 130 and 143.

    end_on_signals("sft.py", lambda: "Go on with: ...")     # first of all, before torch is imported

Whatever is written is complete or absent when a process is killed, so a stop need not wait for anything. The line is
written when the signal comes; the main thread then unwinds, which removes temporary files, and a second signal, or a
main thread that has not ended after `_PATIENCE` seconds (inside a long computation, or waiting for other processes),
ends the process at once. A server, which owes answers to others, finishes them first (`finishing`). In a group of
processes the first one speaks, and all end with their launcher. Forked children end without a word.
"""

import ctypes
import os
import shlex
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
_PATIENCE = 5.0
_LAUNCHERS = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")  # what accelerate and torchrun set
_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of linux/prctl.h
Advice = Callable[[], str]


class Stopped(SystemExit):
    """The signal, as an exception that nothing but the interpreter catches; its code is 128 and the signal's number."""


class _Ending:
    """How this process ends: its name, what it then says, and the signal that has come."""

    def __init__(self, program: str, advice: Advice) -> None:
        self.program, self.advice = program, advice
        self.code: int | None = None
        self.patience: float | None = None  # None for `_PATIENCE`
        self.finish: Callable[[], None] | None = None

    def say(self, number: int) -> None:
        """Write the line, once."""
        if self.code is not None:
            return
        self.code = 128 + number
        if os.environ.get("RANK", "0") != "0":  # of torchrun and `accelerate launch`
            return
        try:
            advice = self.advice()
        except OSError as error:  # a folder that cannot be looked at
            advice = f"What is kept could not be looked up ({error})."
        line = f"{self.program}: stopped by {_NAMES[signal.Signals(number)]}. {advice}\n"
        if sys.stderr is not None and sys.stderr.isatty():
            line = "\n" + line  # after a progress bar
        with suppress(OSError):  # nobody reads it any more
            os.write(2, line.encode("utf-8", "backslashreplace"))  # not sys.stderr, which may be in use just now

    def now(self, number: int) -> NoReturn:
        """End the process."""
        self.say(number)
        os._exit(128 + number if self.code is None else self.code)


_ending: list[_Ending] = []
_forking = threading.local()


def end_on_signals(program: str, advice: Advice) -> None:
    """From here on the signals end this process as the module says. For programs, not libraries; main thread only."""
    if _ending:
        advise(advice)
        return
    ending = _Ending(program, advice)
    _ending.append(ending)
    receiver, sender = socket.socketpair()
    sender.setblocking(False)
    threading.Thread(target=_watch, args=(ending, receiver), name="signals", daemon=True).start()
    sys.unraisablehook = _silent(sys.unraisablehook)
    signal.set_wakeup_fd(sender.detach(), warn_on_full_buffer=False)
    for number in _NAMES:
        if signal.getsignal(number) != signal.SIG_IGN:  # whoever started this wants it ignored, as nohup does
            signal.signal(number, _stop)
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_hold, after_in_parent=_let_come, after_in_child=_forget)
    if any(name in os.environ for name in _LAUNCHERS):
        _end_with_parent()


def advise(advice: Advice) -> None:
    """What the line says from here on. Nothing happens where the signals are not ours, as in a library."""
    for ending in _ending:
        ending.advice = advice


@contextmanager
def finishing(finish: Callable[[], None], patience: float) -> Iterator[None]:
    """While the block runs, a signal calls `finish`, in the main thread, and the block is to end by itself.

    Then the process ends with the signal's exit code. A second signal, or a block that is still running `patience`
    seconds after the first, ends it at once. Nothing happens where the signals are not ours.
    """
    for ending in _ending:
        ending.finish, ending.patience = finish, patience
    try:
        yield
    finally:
        for ending in _ending:
            ending.finish = None
            if ending.code is None:
                ending.patience = None
    for ending in _ending:
        if ending.code is not None:
            raise Stopped(ending.code)


def command_line(program: str) -> str:
    """The command that started this process, to be copied; `program` stands for its beginning."""
    line = shlex.join([*shlex.split(program), *sys.argv[1:]])
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:  # of torchrun and `accelerate launch`
        return f"the same launcher, {line.removeprefix('python ')}"
    return line


def _stop(number: int, frame: FrameType | None) -> None:
    ending = _ending[0]
    if ending.code is not None:  # the second signal
        ending.now(number)
    ending.say(number)
    if ending.finish is not None:
        ending.finish()
        return
    raise Stopped(ending.code)


def _watch(ending: _Ending, receiver: socket.socket) -> None:
    """End the process where its main thread does not."""
    while True:
        for number in receiver.recv(64):
            if number in _NAMES:
                time.sleep(_PATIENCE if ending.patience is None else ending.patience)
                ending.now(number)


def _silent(before: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Exceptions of finalizers and callbacks are only shown; a stop that came there ends the process all the same."""

    def hook(unraisable: Any) -> None:
        if isinstance(unraisable.exc_value, Stopped):
            os._exit(int(unraisable.exc_value.code or 0))
        before(unraisable)

    return hook


def _end_with_parent() -> None:
    """Get SIGTERM when the launcher dies: that of accelerate passes on no signal, and its process would train on."""
    if sys.platform == "linux":
        parent = os.getppid()
        ctypes.CDLL(None).prctl(_DEATH_SIGNAL, int(signal.SIGTERM))
        if os.getppid() != parent:  # it died before
            signal.raise_signal(signal.SIGTERM)


def _hold() -> None:
    """Before a fork: a signal of the child must wait until it is one, or the parent would hear of it."""
    _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, _NAMES)


def _let_come() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _forget() -> None:
    """A forked child: the thread is not there, and its signals must not reach the parent's."""
    _ending.clear()
    signal.set_wakeup_fd(-1)
    for number in _NAMES:
        signal.signal(number, signal.SIG_DFL)
    _let_come()
