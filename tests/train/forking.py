"""A piece of work in a forked child, which can be killed."""

import os
import random
import signal
import sys
import time


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


def kill_and_resume(life, count, seconds, checkpoints_of, seed):
    """Live `life(run)` until it ends well, killed `count` times at random moments of its first `seconds`.

    A run that ends before it is killed is followed by another, so that every kill meets a running one. Returns the
    newest step in the folder `checkpoints_of(run)` at every death, and the number of runs that ended.
    """
    from train.checkpoint.folders import checkpoints, step_of

    def saved(run):
        return max(map(step_of, checkpoints(checkpoints_of(run))), default=0)

    draw, at, run = random.Random(seed), [], 0
    while len(at) < count or run == 0 or saved(run):
        pid = forked(lambda run=run: life(run))
        if len(at) < count:
            time.sleep(draw.uniform(0, seconds))
            os.kill(pid, signal.SIGKILL)
        code = wait(pid)
        if code == -signal.SIGKILL:
            at.append(saved(run))
        elif code == 0:
            run += 1
        else:
            raise SystemExit(f"a resumed life failed with {code}")
    return at, run
