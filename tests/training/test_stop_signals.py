"""Which signals make a run save and stop, which leave at once, and which are left to others."""

import faulthandler
import os
import signal

import pytest

from datarax.checkpoint import SaveConfig, list_steps
from datarax.core.errors import ConfigError
from datarax.multihost.signals import StopSignals
from tests.support.kills import write_config
from tests.support.many import write_config as write_many
from tests.support.processes import Command, Fleet
from tests.training.test_session import session

DEFAULTS = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP, signal.SIGXCPU]
QUIET = [signal.SIGUSR1, signal.SIGHUP, signal.SIGXCPU]


class Sending:
    """Counts, and sends its process signals in the middle of a step."""

    def __init__(self, at, *numbers):
        self.at, self.numbers = at, numbers

    def init(self, config, mesh):
        return {"count": 0}

    def step(self, state, batch):
        count = state["count"] + 1
        if count == self.at:
            for number in self.numbers:
                signal.raise_signal(number)
        return {"count": count}, {"loss": 1 / count}


@pytest.fixture
def left(monkeypatch):
    """The codes with which the process would have left at once."""
    codes = []
    monkeypatch.setattr(os, "_exit", codes.append)
    return codes


@pytest.mark.parametrize("number", DEFAULTS, ids=lambda number: number.name)
def test_each_signal_saves_after_the_step_and_stops(number, tmp_path, left):
    outcome = session(tmp_path / "run", task=Sending(3, number)).run()
    assert (outcome.step, outcome.complete) == (3, False)
    assert list_steps(tmp_path / "run") == [3]
    assert left == []


@pytest.mark.parametrize("number", QUIET, ids=lambda number: number.name)
def test_other_signals_while_stopping_are_ignored_however_many(number, tmp_path, left, capfd):
    sent = [signal.SIGTERM, number, number, *QUIET]
    assert session(tmp_path / "run", task=Sending(3, *sent)).run().step == 3
    assert left == []
    assert capfd.readouterr().err.count("received") == 1


def test_sigterm_after_a_warning_is_the_first_of_its_kind_and_the_save_goes_on(tmp_path, left, capfd):
    outcome = session(tmp_path / "run", task=Sending(3, signal.SIGUSR1, signal.SIGTERM)).run()
    assert (outcome.step, list_steps(tmp_path / "run"), left) == (3, [3], [])
    said = capfd.readouterr().err
    assert "SIGUSR1 received, saving after this step; SIGINT or SIGTERM twice leaves at once" in said
    assert "SIGTERM received, already saving; once more leaves at once" in said


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("second", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("between", [[], [signal.SIGHUP]])
def test_a_second_sigint_or_sigterm_leaves_at_once(first, second, between, left):
    with StopSignals(SaveConfig().signals, many=False):
        for number in (first, *between):
            signal.raise_signal(number)
        assert left == []
        signal.raise_signal(second)
    assert left == [128 + second]


@pytest.mark.parametrize("number", DEFAULTS, ids=lambda number: number.name)
def test_a_signal_that_is_ignored_at_the_start_stays_so_and_nothing_is_said(number):
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with StopSignals(SaveConfig().signals, many=False) as signals:
            signal.raise_signal(number)
            assert not signals.requested
            assert signals.foreign == []
    finally:
        signal.signal(number, before)


def test_a_handler_that_was_installed_from_c_stays():
    # Python's own table still says that the signal has its default action.
    faulthandler.register(signal.SIGUSR1, file=2, chain=False)
    try:
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
        with StopSignals(["USR1", "HUP"], many=False) as signals:
            assert signals.foreign == ["SIGUSR1"]
            assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
            assert signal.getsignal(signal.SIGHUP) != signal.SIG_DFL
    finally:
        faulthandler.unregister(signal.SIGUSR1)


def test_only_the_signals_of_the_config_are_taken(tmp_path):
    with StopSignals(["USR2"], many=False):
        assert signal.getsignal(signal.SIGUSR2) != signal.SIG_DFL
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
        assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    save = SaveConfig(signals=["USR2"])
    assert session(tmp_path / "run", task=Sending(3, signal.SIGUSR2), save=save).run().step == 3


def test_handlers_of_all_signals_are_put_back(tmp_path):
    before = [signal.getsignal(number) for number in DEFAULTS]
    session(tmp_path / "run", task=Sending(2, signal.SIGUSR1)).run()
    assert [signal.getsignal(number) for number in DEFAULTS] == before


def test_with_many_processes_each_becomes_one_sigterm_and_jax_keeps_that_one(left, monkeypatch):
    sent = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    before = signal.getsignal(signal.SIGTERM)
    try:
        with StopSignals(SaveConfig().signals, many=True) as signals:
            assert signal.getsignal(signal.SIGTERM) == before
            for number in (*QUIET, signal.SIGINT):
                signal.raise_signal(number)
            assert (signals.name, sent) == ("SIGUSR1", [(os.getpid(), signal.SIGTERM)])
            signals.leave_on_next()
            for number in QUIET:
                signal.raise_signal(number)
            assert left == []
            signal.raise_signal(signal.SIGTERM)
            assert left == [143]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_late_warning_does_not_end_a_process_that_saves_at_the_agreed_step(left, monkeypatch):
    sent, before = [], signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append(number))
    try:
        with StopSignals(SaveConfig().signals, many=True) as signals:
            signals.leave_on_next()  # another process was told first
            signal.raise_signal(signal.SIGUSR1)
            assert (left, sent) == ([], [])
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("name", ["SIGUSR1", "usr1", "", "FOO", "SEGV", "CHLD", "PIPE", "0"])
def test_names_that_are_none_are_refused_with_what_there_is(name):
    with pytest.raises(ConfigError, match=r"save\.signals must name .*HUP, INT.*TERM, USR1.*; got"):
        SaveConfig(signals=["TERM", name])


@pytest.mark.parametrize("name", ["KILL", "STOP"])
def test_signals_that_nobody_hears_are_refused(name):
    with pytest.raises(ConfigError, match=f"save.signals: no program ever hears of SIG{name}"):
        SaveConfig(signals=[name])


def test_signals_are_a_list_of_texts():
    for wrong in ("TERM", [10], None):
        with pytest.raises(ConfigError, match="signals"):
            SaveConfig(signals=wrong)


# Real processes.


@pytest.mark.parametrize("number", QUIET, ids=lambda number: number.name)
@pytest.mark.few(1)
def test_a_run_of_the_command_line_saves_and_exits_75(number, tmp_path):
    arguments = ["run", write_config(tmp_path), "--set", "run.steps=100000"]
    command = Command(arguments, directory=tmp_path, log=tmp_path / "output.log")
    command.wait_until(lambda: list_steps(tmp_path / "run"))
    assert command.kill_after(0, number) == 75, command.output()
    assert f"{number.name} received, saving after this step" in command.output()
    last = int(command.output().rsplit("after step ", 1)[1].split(";")[0])
    assert list_steps(tmp_path / "run")[-1] == last


@pytest.mark.full
@pytest.mark.parametrize("number", QUIET, ids=lambda number: number.name)
def test_one_process_of_two_is_warned_and_both_save_at_one_step(number, tmp_path):
    command = ["run", write_many(tmp_path), "--set", "run.steps=100000"]
    fleet = Fleet(command, count=2, directory=tmp_path)
    fleet.wait_until(lambda: list_steps(tmp_path / "run"))
    fleet.signal_after(0.1, 1, number)
    assert fleet.wait() == [75, 75], fleet.output()
    assert f"{number.name} received, all processes save at one step" in fleet.output()


@pytest.mark.full
def test_processes_that_take_other_signals_disagree_before_anything_is_written(tmp_path):
    sets = [["--set", f'save.signals=["TERM", "{name}"]'] for name in ("USR1", "USR2")]
    fleet = Fleet(["run", write_many(tmp_path)], count=2, directory=tmp_path, each=sets.__getitem__)
    assert fleet.wait() == [1, 1], fleet.output()
    assert "the save settings" in fleet.output()
    assert list_steps(tmp_path / "run") == []
