"""What 300 loaders hand over, on different ways through their steps, and what their states are then."""

import hashlib
import random

import jax
import numpy as np

from datarax.checkpoint import encode
from datarax.loader import DataLoader, DataLoaderConfig
from tests.behaviour import parts

CASES = 300
WITH_STATE = 5
"""The state of every fifth case is kept."""

NUMBERS = ("range", "long")
ORDERS = (
    {"order": "none"},
    {"order": "global"},
    {"order": "global", "order_version": 1},
    {"order": "block"},
    {"order": "grain", "grain_style": "index_sampler"},
    {"order": "grain", "grain_style": "map_dataset"},
    {"order": "grain", "grain_style": "map_dataset", "grain_ops_between": 2},
)
"""Grain's shuffle of a short source costs a table for each pass, and a far batch has passes of its own: long sources only."""
WAYS = ("through", "restored", "resized", "sought", "far", "asked")


class Draw:
    """Choices that follow from a text alone: of `random`, only the sequence of `random()` is promised for ever."""

    def __init__(self, text):
        self._random = random.Random(text).random

    def below(self, count):
        return int(self._random() * count)

    def pick(self, choices):
        return choices[self.below(len(choices))]

    def subset(self, values):
        """A sorted subset with at least one value."""
        chosen = [value for value in values if self.below(2)]
        return chosen or [self.pick(list(values))]


def settings(number):
    """What case `number` is: the kind of its source, its loader's config, stages, rows, owned, and its way."""
    draw = Draw(f"delivery {number}")
    way = WAYS[number % len(WAYS)]
    kind = parts.SOURCES[number // len(WAYS) % len(parts.SOURCES)]
    orders = (
        ORDERS if way != "far" or kind == "long" else [each for each in ORDERS if each["order"] != "grain"]
    )
    config = {
        "batch_size": 1 + draw.below(16),
        "seed": draw.pick([0, 1, 20, 2**31 + 5, 2**40 + 3, 2**63 - 1]),
    }
    config |= draw.pick(orders)
    if config["order"] == "block":
        config |= {"block_size": 1 + draw.below(9), "window_blocks": 1 + draw.below(4)}
    if config.get("grain_style") == "index_sampler":
        config["seed"] %= 2**32
    endless = [None] if config["order"] != "grain" else []
    config["num_epochs"] = None if way == "far" else draw.pick([*endless, 1, 2, 3])
    if config["num_epochs"] is not None:
        config["remainder"] = draw.pick(["drop", "pad"])
    config["byte_digest"] = draw.pick([None, False, True, True])
    config["read_ahead"] = draw.pick([0, 0, 1, 3])
    config["num_threads"] = draw.pick([1, 1, 2])
    names = list(parts.STAGES)[1:]
    chain = [draw.pick(names) for _ in range(draw.below(4))]
    chain = list(dict.fromkeys(chain))
    padded_numbers = kind in NUMBERS and config.get("remainder") == "pad"
    if kind == "records" or padded_numbers or (chain and kind in (*NUMBERS, "items")):
        chain = ["columns", *chain]
    rows = owned = None
    if draw.below(3) == 0 and way != "resized":
        rows = draw.subset(range(config["batch_size"]))
        owned = draw.subset(rows) if draw.below(2) else None
    return {"source": kind, "config": config, "stages": chain, "rows": rows, "owned": owned, "way": way}


def described(case):
    """The settings as one line, without what stands at its default."""
    config = {name: value for name, value in case["config"].items() if value is not None}
    shares = {name: case[name] for name in ("rows", "owned") if case[name] is not None}
    facts = " ".join(f"{name}={value}" for name, value in {**config, **shares}.items())
    return f"{case['way']}: {case['source']} -> {' -> '.join([*case['stages'], facts])}"


def open_loader(case, directory, batch_size=None):
    config = dict(case["config"], **({} if batch_size is None else {"batch_size": batch_size}))
    return DataLoader(
        DataLoaderConfig(**config),
        parts.source(case["source"], directory),
        transforms=[parts.STAGES[name] for name in case["stages"]],
        rows=case["rows"],
        owned=case["owned"],
    )


def content(batch):
    """One hash of all leaves of a batch: paths, dtypes, shapes and bytes, without any digest of our own."""
    hashed = hashlib.blake2b(digest_size=8)
    for path, leaf in jax.tree_util.tree_flatten_with_path(batch)[0]:
        leaf = np.asarray(leaf)
        hashed.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape} ".encode())
        hashed.update(np.ascontiguousarray(leaf).tobytes())
    return hashed.hexdigest()


def step_facts(loader, step, batch):
    """A step in one line: where it begins, sums of its record keys, its digests, and a hash of the batch."""
    keys, values, rows = loader.step_digest(step, with_bytes=True)
    assert loader.step_digest(step) == (keys, None, rows)
    records = loader.record_keys(step)
    weights = np.arange(1, len(records.index) + 1)
    sums = [
        int((np.asarray(column) * weights).sum()) for column in (records.source, records.index, records.epoch)
    ]
    where = f"{step} at {loader.position_of(step)}"
    return f"{where}: {rows} rows {sums[0]}/{sums[1]}/{sums[2]} {keys:016x} {values:016x} {content(batch)}"


class Log:
    """What a case gave, in its order."""

    def __init__(self):
        self.lines = []

    def take(self, loader, count):
        """Takes up to `count` batches, and notes each."""
        for _ in range(count):
            step = loader.idx.get_value()
            try:
                batch = next(loader)
            except StopIteration:
                self.lines.append(f"end at {step}")
                return
            self.lines.append(step_facts(loader, step, batch))

    def attempt(self, what, act):
        """Notes the kind of error where there is one."""
        try:
            act()
        except Exception as error:
            self.lines.append(f"{what}: {type(error).__name__}")

    def delivered(self, loader):
        """What the loader says it has handed over."""
        first, keys, values, complete = loader.take_step_digests()
        log = hashlib.blake2b(keys.tobytes() + values.tobytes(), digest_size=8).hexdigest()
        digest = loader.digest
        total = f"{digest.rows} rows {digest.keys:016x} " + (
            "-" if digest.bytes is None else f"{digest.bytes:016x}"
        )
        place = (loader.idx.get_value(), loader.position.get_value(), loader.epoch.get_value())
        self.lines.append(
            f"delivered {total}; log {first}+{len(keys)} {log} {'bytes' if complete else 'keys'}; at {place}; "
            f"of {loader.num_steps}; {loader.get_operation_stats()}"
        )


def deliver(number, directory):
    """Runs a case.

    Returns:
        Its lines, and the encoded state at its end.
    """
    case, draw, log = settings(number), Draw(f"way {number}"), Log()
    last = [open_loader(case, directory)]

    def reopened(batch_size=None):
        """Another loader that goes on from the state of the one before, which is closed."""
        state = last[-1].get_state()
        last[-1].close()
        last.append(open_loader(case, directory, batch_size))
        last[-1].adopt(state, identity="unchecked")
        return last[-1]

    loader = last[-1]
    if case["way"] == "through":
        log.take(loader, 4)
        if loader.num_steps is not None:
            loader.seek(max(loader.num_steps - 2, loader.idx.get_value()))
        log.take(loader, 4)
    elif case["way"] == "restored":
        log.take(loader, draw.below(4))
        for _ in range(2):
            loader = reopened()
            log.take(loader, 1 + draw.below(3))
    elif case["way"] == "resized":
        log.take(loader, 1 + draw.below(4))
        for _ in range(2):
            size = 1 + draw.below(16)
            log.lines.append(f"batch size {size}")
            log.attempt("restore", lambda size=size: reopened(size))
            loader = last[-1]
            log.take(loader, 1 + draw.below(3))
    elif case["way"] == "sought":
        for _ in range(3):
            step = draw.below(12 if loader.num_steps is None else loader.num_steps + 1)
            loader.seek(step)
            log.take(loader, 2)
        log.attempt("before the start", lambda: loader.seek(-1))
        log.attempt("after the end", lambda: loader.seek((loader.num_steps or 2**63) + 1))
    elif case["way"] == "far":
        log.take(loader, 1)
        for step in (10**6 + draw.below(1000), 2**31 - 1, 2**40 + draw.below(10**6)):
            log.attempt(f"far {step}", lambda step=step: loader.seek(step))
            log.attempt(f"far {step}", lambda: log.take(loader, 2))
        log.attempt("restore", reopened)
        loader = last[-1]
        log.attempt("on", lambda: log.take(loader, 1))
    else:
        steps = 50 if loader.num_steps is None else loader.num_steps
        for step in (draw.below(steps), draw.below(steps)):
            log.lines.append("asked " + step_facts(loader, step, loader.batch_at(step)))
        log.attempt("no such step", lambda: loader.batch_at((loader.num_steps or 2**63) + 1))
        log.take(loader, 2)
        with loader.clone() as clone:
            log.take(clone, 1)
            log.delivered(clone)
        with loader.copy() as copy:
            log.take(copy, 1)
        loader.reset()
        log.take(loader, 1)
    loader = last[-1]
    log.delivered(loader)
    state = encode(loader.get_state())
    loader.close()
    loader.source.close()
    return log.lines, state


def facts(directory, every=1):
    """File name -> case -> what each `every`-th one gave: of the deliveries, and of the states at their ends."""
    parts.write_files(directory / "files")
    deliveries, states = {}, {}
    for number in range(0, CASES, every):
        name = f"{number:03d}"
        lines, state = deliver(number, directory / "files")
        deliveries[name] = {"case": described(settings(number)), "steps": lines}
        if number % WITH_STATE == 0:
            states[name] = state
    return deliveries, states
