"""Ctrl-C at every instruction of a hand-over: nothing has moved, or the state has by one batch, which is `current`.

A tracer raises KeyboardInterrupt before the n-th bytecode that runs in the calling thread in our code, or in the parts of the
standard library that could hold a lock, for every n there is.
"""

import contextlib
import gc
import itertools
import subprocess
import sys
import threading

import grain
import numpy as np
import pytest

from datarax import (
    DataLoader,
    DataLoaderConfig,
    GrainPipeline,
    GrainPipelineConfig,
    MemoryConfig,
    MemorySource,
)
from tests.support.tiers import is_whole

_OURS = ("/datarax/loader/", "/datarax/grain_pipeline/")
"""What runs within Grain is Grain's: it takes locks of `threading` in the thread that asks."""
_INSIDE = (
    "/datarax/loader/",
    "/datarax/grain_pipeline/",
    "/threading.py",
    "/queue.py",
    "/concurrent/",
    "/weakref.py",
)


def loader(**config):
    config = {"batch_size": 4, "seed": 3, "read_ahead": 0, "byte_digest": True} | config
    return DataLoader(DataLoaderConfig(**config), MemorySource(MemoryConfig(), {"x": np.arange(400.0)}))


def pipeline():
    return GrainPipeline(GrainPipelineConfig(name="p"), grain.MapDataset.range(400).batch(4))


def mean(batch):
    return {"mean": batch["x"].mean()}


def rows(batch):
    return np.asarray(batch["x"] if isinstance(batch, dict) else batch).tolist()


@contextlib.contextmanager
def interrupted_at(number, inside=_INSIDE):
    """Raises KeyboardInterrupt before the `number`-th bytecode of ours within the block. Yields how many there were."""
    seen = [0]

    def trace(frame, event, argument):
        if not any(part in frame.f_code.co_filename for part in inside):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "opcode":
            seen[0] += 1
            if seen[0] == number:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    gc.disable()  # what ends streams of earlier tests is no hand-over
    sys._getframe().f_trace_opcodes = True  # of any frame: else Python 3.12 looks for no opcodes
    sys.settrace(trace)
    try:
        yield seen
    finally:
        sys.settrace(before)
        gc.enable()


STREAMS = {
    "in the caller": loader,
    "read ahead": lambda: loader(read_ahead=2),
    "with means": lambda: loader(batch_stats_fn=mean),
    "Grain": pipeline,
}


@pytest.mark.parametrize("make", STREAMS.values(), ids=STREAMS)
@pytest.mark.parametrize("first", [True, False])
def test_an_interrupt_at_any_instruction_moves_nothing_or_one_batch(make, first):
    every = 1 if is_whole() else 41
    assert interrupt_everywhere(make, first, every) * every > 100


def interrupt_everywhere(make, first, every=1):
    """Interrupts hand-overs at each n-th bytecode, and looks at what is left; returns the number of interrupts.

    Args:
        make: makes the stream.
        first: whether to interrupt the first hand-over of a stream; else a later one.
        every: distance of the bytecodes.
    """
    reference = make()
    expected = [rows(next(reference)) for _ in range(60)]
    stream, number, interrupts = make(), 1, 0
    while True:
        if first or stream.idx.get_value() > 50:
            stream.close()
            stream = make()
        if not first and not stream.idx.get_value():
            next(stream)
        at = stream.idx.get_value()
        try:
            with interrupted_at(number, _OURS if make is pipeline else _INSIDE) as seen:
                batch = next(stream)
        except KeyboardInterrupt:
            interrupts += 1
        else:
            assert rows(batch) == expected[at]
            break
        assert seen[0] >= number
        here = stream.idx.get_value()
        assert here in (at, at + 1)
        if here == at + 1:
            assert rows(stream.current.get_value()) == expected[at]
        assert rows(next(stream)) == expected[here]
        assert stream.get_state()["idx"] == here + 1
        number += every
    stream.close()
    return interrupts


@pytest.mark.parametrize("read_ahead", [0, 2])
def test_an_interrupted_close_ends_in_the_next_and_leaves_no_thread(read_ahead):
    every = 1 if is_whole() else 41
    before = set(threading.enumerate())
    for number in itertools.count(1, every):
        stream = loader(read_ahead=read_ahead)
        next(stream)
        try:
            with interrupted_at(number):
                stream.close()
        except KeyboardInterrupt:
            next(stream)
            stream.close()
        else:
            break
    del stream
    gc.collect()
    for thread in set(threading.enumerate()) - before:
        thread.join(30)
        assert not thread.is_alive()


SIGNALS = """
import faulthandler, os, random, signal, sys, threading, time
import numpy as np
from datarax import DataLoader, DataLoaderConfig, MemoryConfig, MemorySource
faulthandler.dump_traceback_later(300, exit=True)
seed, count = int(sys.argv[1]), int(sys.argv[2])
draw = random.Random(seed)
config = DataLoaderConfig(batch_size=4, read_ahead=seed % 3)
make = lambda: DataLoader(config, MemorySource(MemoryConfig(), {"x": np.arange(400.0)}))
expected = make()
stream, main = make(), threading.main_thread().ident
go, out = threading.Event(), threading.Event()
delay = [0.0]
def send():
    while not out.is_set():
        if go.wait(0.1):
            go.clear()
            at = time.perf_counter() + delay[0]
            while time.perf_counter() < at:
                pass
            signal.pthread_kill(main, signal.SIGINT)
threading.Thread(target=send, daemon=True).start()
for _ in range(count):
    delay[0] = draw.random() * 0.0006
    came, taking = False, False
    try:
        go.set()
        while True:
            at, taking = stream.idx.get_value(), True
            batch = next(stream)
            taking = False
            assert np.array_equal(batch["x"], expected.batch_at(at)["x"]), at
    except KeyboardInterrupt:
        pass
    here = stream.idx.get_value()
    if here:
        current = stream.current.get_value()
        assert np.array_equal(current["x"], expected.batch_at(here - 1)["x"])
    assert here - at in (0, 1)
    assert np.array_equal(next(stream)["x"], expected.batch_at(here)["x"])
    if draw.random() < 0.1:
        stream.close()
out.set()
stream.close()
print("done", stream.idx.get_value() > count)
"""


@pytest.mark.few(1)
@pytest.mark.parametrize("seed", range(10))
def test_real_signals_in_the_hand_over_leave_it_whole(seed):
    signal_hand_overs(seed, 100)


def signal_hand_overs(seed, count):
    """Sends a process of its own so many SIGINT while it takes batches, and looks at what each leaves."""
    done = subprocess.run(
        [sys.executable, "-c", SIGNALS, str(seed), str(count)], capture_output=True, text=True, timeout=600
    )
    assert (done.returncode, done.stdout) == (0, "done True\n"), done.stderr
