"""A piece of work in a forked child, which can be killed."""

import os
import signal
import sys


def forked(action):
    pid = os.fork()
    if pid == 0:
        try:
            action()
        except BaseException as error:  # noqa: BLE001  a forked child must not return into the parent's code
            print(repr(error), file=sys.stderr, flush=True)
            os._exit(1)
        os._exit(0)
    return pid


def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def together(size, action):
    """`action(number)` in `size` children at once; where one fails, the others, which would wait for it, are killed."""
    members = [forked(lambda number=number: action(number)) for number in range(size)]
    while members:
        pid, status = os.wait()
        members.remove(pid)
        if os.waitstatus_to_exitcode(status):
            for left in members:
                os.kill(left, signal.SIGKILL)
            raise SystemExit(f"one of {size} processes failed")
