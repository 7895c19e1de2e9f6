"""What threads that read ahead leave behind: nothing, in whatever way they are left."""

import subprocess
import sys
import threading
import time

import pytest

from datarax.loader import producer
from datarax.loader.producer import ReadAhead, Threads, Unit


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, KeyError])
def test_what_a_step_raised_is_raised_once(error):
    raised = []

    def prepare(step):
        if not raised:
            raised.append(step)
            raise error("once")
        return step

    ahead = ReadAhead(lambda: Threads(prepare, 1), 2)
    with pytest.raises(error):
        ahead.take(0, None)
    assert [ahead.take(0, None), ahead.take(1, None)] == [0, 1]
    ahead.close()


def test_any_step_may_be_asked_for_at_any_time():
    ahead = ReadAhead(lambda: Threads(lambda step: step, 1), 3)
    for step in (0, 1, 1, 4, 2, 3, 0):  # again: whoever was interrupted did not get it
        assert ahead.take(step, None) == step
    ahead.close()


def test_an_interrupted_wait_loses_no_work(monkeypatch):
    may_go_on, made = threading.Event(), []

    def prepare(step):
        may_go_on.wait(60)
        made.append(step)
        return step

    class Interrupted(Unit):
        """A unit whose first wait is interrupted, as by Ctrl-C."""

        waits = 0

        def outcome(self):
            self.waits += 1
            if self.waits == 1:
                raise KeyboardInterrupt
            return super().outcome()

    monkeypatch.setattr(producer, "Unit", Interrupted)
    ahead = ReadAhead(lambda: Threads(prepare, 1), 1)
    with pytest.raises(KeyboardInterrupt):
        ahead.take(0, None)
    may_go_on.set()
    assert ahead.take(0, 1) == 0
    assert made == [0]
    ahead.close()


LEAVE = """
import sys, threading
from datarax.loader.producer import ReadAhead, Threads
started = threading.Event()
def prepare(step):
    print(step, flush=True)
    started.set()
    if step:
        threading.Event().wait(0.2)
    return step
ahead = ReadAhead(lambda: Threads(prepare, 1), 50)
ahead.take(0, None)
"""


@pytest.mark.full
def test_leaving_the_interpreter_does_not_wait_for_what_nobody_will_take():
    done = subprocess.run([sys.executable, "-c", LEAVE], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.split()) < 25  # of the 51 steps that were asked for


FORK = """
import os, signal, sys, warnings
warnings.simplefilter("ignore")
from datarax.loader.producer import ReadAhead, Threads
ahead = ReadAhead(lambda: Threads(lambda step: step, 1), 2)
ahead.take(0, None)
child = os.fork()
if not child:
    signal.alarm(30)
    assert [ahead.take(step, None) for step in (1, 2, 3)] == [1, 2, 3]
    ahead.close()
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
assert [ahead.take(step, None) for step in (1, 2, 3)] == [1, 2, 3]
"""


def test_a_forked_child_reads_on_with_threads_of_its_own():
    done = subprocess.run([sys.executable, "-c", FORK], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_closing_twice_and_taking_again_is_fine():
    before = threading.active_count()
    ahead = ReadAhead(lambda: Threads(lambda step: step, 2), 3)
    assert ahead.take(5, None) == 5
    ahead.close()
    ahead.close()
    assert ahead.take(6, None) == 6
    ahead.close()
    deadline = time.monotonic() + 60
    while threading.active_count() > before and time.monotonic() < deadline:
        time.sleep(0.001)  # one that has not begun yet ends as soon as it does
    assert threading.active_count() <= before
