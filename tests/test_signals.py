"""Signals: noted between two steps, raised in work that may be broken off, and lost in neither."""

import gc
import signal
import sys
import time

import pytest

from datarax.signals import StopRequested, StopSignals


class Interrupted:
    """Gets a signal while it is destroyed, where Python lets no exception out."""

    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


def break_off(act):
    """Acts, and then works until a signal breaks that off."""
    act()
    while True:
        time.sleep(0.01)


def test_a_signal_in_a_destructor_breaks_the_work_off_without_noise(capfd):
    with pytest.raises(StopRequested), StopSignals(raising=True):
        break_off(Interrupted)
    assert capfd.readouterr().err == ""


def test_a_signal_in_the_garbage_collector_breaks_the_work_off_without_noise(capfd):
    def collecting(phase, info):
        gc.callbacks.remove(collecting)
        signal.raise_signal(signal.SIGINT)

    gc.callbacks.append(collecting)
    with pytest.raises(StopRequested), StopSignals(raising=True):
        break_off(gc.collect)
    assert capfd.readouterr().err == ""


def test_a_signal_in_a_destructor_just_before_the_loop_is_noted_once():
    with StopSignals(raising=True) as signals:
        Interrupted()
        with pytest.raises(StopRequested):
            signals.defer()
        again = signals._again
        if again is not None:
            again.join()
    assert signals.requested


def test_other_exceptions_of_destructors_go_where_they_went(monkeypatch):
    seen = []
    monkeypatch.setattr(sys, "unraisablehook", seen.append)

    class Failing:
        def __del__(self):
            raise ValueError("no")

    with StopSignals():
        Failing()
    assert [type(each.exc_value) for each in seen] == [ValueError]
    assert sys.unraisablehook == seen.append
