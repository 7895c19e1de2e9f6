"""A correct stream of nine elements, as a user would write one without datarax, and one that is broken in each way."""

import collections
import operator

import numpy as np

LENGTH = 9


class Stream:
    start = 0

    def __init__(self):
        self.index = self.start

    def element(self, at):
        return {"x": np.arange(3, dtype=np.float32) + 10 * at, "name": f"record {at}"}

    def __next__(self):
        if self.index >= self.start + LENGTH:
            raise StopIteration
        element = self.element(self.index)
        self.index += 1
        return element

    def get_state(self):
        return {"index": self.index, "inner": {"left": self.start + LENGTH - self.index}}

    def set_state(self, state):
        self.check(state)
        self.index = state["index"]

    def check(self, state):
        if not isinstance(state, dict):
            raise TypeError("no dict")
        mine = self.get_state()
        if state.keys() != mine.keys() or state["inner"].keys() != mine["inner"].keys():
            raise ValueError("other keys")
        if type(state["index"]) is not int or type(state["inner"]["left"]) is not int:
            raise ValueError("no int")


# The stream itself.


class OtherAtEachStart(Stream):
    made = 0

    def __init__(self):
        super().__init__()
        OtherAtEachStart.made += 1
        self.number = OtherAtEachStart.made

    def element(self, at):
        return {**super().element(at), "number": self.number}


class DisturbedByAsking(Stream):
    """Asking drops what is read ahead."""

    def __init__(self):
        super().__init__()
        self.queue = collections.deque()

    def __next__(self):
        if not self.queue:
            self.queue.extend([super().__next__(), super().__next__()])
        return self.queue.popleft()

    def get_state(self):
        self.queue.clear()
        return super().get_state()


class CountsAsking(Stream):
    asked = 0

    def get_state(self):
        self.asked += 1
        return {**super().get_state(), "asked": self.asked}


# States.


class SharesAList(Stream):
    """The list that goes into the state is the one that the iterator works on."""

    def __init__(self):
        super().__init__()
        self.pending = list(range(LENGTH))

    def __next__(self):
        element = super().__next__()
        self.pending.pop(0)
        return element

    def get_state(self):
        return {**super().get_state(), "pending": self.pending}

    def set_state(self, state):
        super().set_state(state)
        self.pending = list(state["pending"])


class SharesAListThatStays(SharesAList):
    """It changes only when somebody else changes it."""

    def __next__(self):
        element = Stream.__next__(self)
        self.pending = self.pending[1:]
        return element


class KeepsTheArgument(SharesAListThatStays):
    def get_state(self):
        return {**Stream.get_state(self), "pending": list(self.pending)}

    def set_state(self, state):
        Stream.set_state(self, state)
        self.pending = state["pending"]


class EmptiesTheArgument(Stream):
    def set_state(self, state):
        self.check(state)
        self.index = state.pop("index")


class KeepsDeliveredIndices(Stream):
    def get_state(self):
        return {**super().get_state(), "delivered": list(range(self.index))}


class KeepsDeliveredBits(Stream):
    def get_state(self):
        return {**super().get_state(), "delivered": np.zeros(self.index, np.bool_)}


class HoldsData(Stream):
    def get_state(self):
        return {**super().get_state(), "batch": np.zeros(10_000)}


class HoldsAnObject(Stream):
    def get_state(self):
        return {**super().get_state(), "read": operator.itemgetter(0)}


# Restoring.


class StateOfTheReadAhead(Stream):
    """The state counts what was read, not what was handed over."""

    def __init__(self):
        super().__init__()
        self.queue = collections.deque()

    def __next__(self):
        while len(self.queue) < 2 and self.index < LENGTH:
            self.queue.append(super().__next__())
        if not self.queue:
            raise StopIteration
        return self.queue.popleft()

    def set_state(self, state):
        super().set_state(state)
        self.queue.clear()


class KeepsTheReadAhead(StateOfTheReadAhead):
    """The state is right; what was read ahead survives a restore."""

    def get_state(self):
        at = self.index - len(self.queue)
        return {"index": at, "inner": {"left": LENGTH - at}}

    def set_state(self, state):
        Stream.set_state(self, state)
        self.index += len(self.queue)


class IndexInInt32(Stream):
    """Begins where 32 bits end."""

    start = 2**31 - 3

    def get_state(self):
        return {**super().get_state(), "index": int(np.array(self.index).astype(np.int32))}


class OtherKindAfterRestore(Stream):
    def set_state(self, state):
        self.check({**state, "index": int(state["index"])})
        self.index = np.int32(state["index"])


class RunningRandomness(Stream):
    """The noise is drawn from a generator that no state holds."""

    def __init__(self):
        super().__init__()
        self.generator = np.random.default_rng(0)

    def element(self, at):
        return {**super().element(at), "noise": self.generator.random()}


class OneBack(Stream):
    def set_state(self, state):
        self.check(state)
        self.index = max(state["index"] - 1, 0)


class OneBackInSecret(Stream):
    """What it says of its place is right; what it delivers is not."""

    off = 0

    def element(self, at):
        return super().element(max(at - self.off, 0))

    def set_state(self, state):
        super().set_state(state)
        self.off = 1


class OtherDtypeAfterRestore(Stream):
    factor = np.float32(1)

    def element(self, at):
        element = super().element(at)
        return {**element, "x": element["x"] * self.factor}

    def set_state(self, state):
        super().set_state(state)
        self.factor = np.float64(1)


class StaysExhausted(Stream):
    exhausted = False

    def __next__(self):
        if self.exhausted:
            raise StopIteration
        try:
            return super().__next__()
        except StopIteration:
            self.exhausted = True
            raise


class EndsOnce(Stream):
    def __next__(self):
        try:
            return super().__next__()
        except StopIteration:
            self.index = self.start
            raise


class RestoresWhenAsked(Stream):
    """A state takes effect when the next one is asked for, and is lost if an element is taken before."""

    waiting = None

    def set_state(self, state):
        self.check(state)
        self.waiting = state["index"]

    def get_state(self):
        if self.waiting is not None:
            self.index, self.waiting = self.waiting, None
        return super().get_state()

    def __next__(self):
        element = super().__next__()
        self.waiting = None
        return element


class RefusesItsOwn(Stream):
    def set_state(self, state):
        super().set_state(state)
        if state["index"] == LENGTH:
            raise ValueError("there is nothing left")


# Damaged states.


class AcceptsAnything(Stream):
    def set_state(self, state):
        if not isinstance(state, dict):
            raise TypeError("no dict")
        self.index = int(state.get("index", 0))


class AcceptsMore(Stream):
    def set_state(self, state):
        if not isinstance(state, dict):
            raise TypeError("no dict")
        if not {"index", "inner"} <= state.keys():
            raise ValueError("keys are missing")
        self.index = state["index"]


class AcceptsText(Stream):
    def set_state(self, state):
        self.check(
            {**state, "index": int(state["index"])} if isinstance(state, dict) and "index" in state else state
        )
        self.index = int(state["index"])


class RefusesTooLate(Stream):
    def set_state(self, state):
        if not isinstance(state, dict):
            raise TypeError("no dict")
        self.index = state.get("index", self.index)
        self.check(state)


class RefusesWithKeyError(Stream):
    def set_state(self, state):
        if not isinstance(state, dict):
            raise TypeError("no dict")
        state["index"]
        super().set_state(state)


# Digests.


class Digest:
    def __init__(self, rows):
        self.rows = rows

    def to_state(self):
        return {"version": 1, "rows": self.rows, "keys": "0", "bytes": None}


class WithDigests(Stream):
    """Correct: a digest of everything, and one of each step."""

    def __init__(self):
        super().__init__()
        self.rows, self.first = 0, 0

    def __next__(self):
        element = super().__next__()
        self.rows += 1
        return element

    def set_state(self, state):
        super().set_state(state)
        self.rows, self.first = self.index, self.index

    @property
    def digest(self):
        return Digest(self.rows)

    def take_step_digests(self):
        steps = np.arange(self.first, self.index, dtype=np.uint64)
        return self.first, steps * np.uint64(7), np.zeros_like(steps), False

    def committed(self, step):
        self.first = step


class ForgetsItsDigest(WithDigests):
    def set_state(self, state):
        super().set_state(state)
        self.rows = 0


class ForgetsAStepDigest(WithDigests):
    def set_state(self, state):
        super().set_state(state)
        self.first = min(self.index + 1, LENGTH)


class WrongStepDigests(WithDigests):
    shift = 0

    def set_state(self, state):
        super().set_state(state)
        self.shift = 1

    def take_step_digests(self):
        first, keys, of_bytes, has_bytes = super().take_step_digests()
        return first, keys + np.uint64(self.shift), of_bytes, has_bytes


# Snapshots.


class OtherIdentityAtEachStart(OtherAtEachStart):
    element = Stream.element

    def identity(self):
        return {"number": self.number}
