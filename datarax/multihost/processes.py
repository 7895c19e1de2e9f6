"""How the processes of one run agree: every exchange has a deadline, and names who failed, differed or did not come.

Works on JAX's coordination service (a key-value store and named barriers), never on devices, so no collective can hang in it.
A training step needs none of it; start, save and restore do. Who the processes are is said in `datarax.multihost.startup`.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax

from datarax.core.errors import DataraxError, DisagreementError, PeerError, PeerLostError

T = TypeVar("T")

_SOON = 5.0


class Processes:
    """The processes of one run, seen from one of them.

    Made by `start` and `current`; `Processes()` is one process alone, whose exchanges cost nothing.

    Attributes:
        index: which one this is, 0 to count - 1; process 0 writes what is written once.
        count: how many there are.
        broken: whether this process ends without the others, which then cannot be waited for.
    """

    def __init__(
        self,
        index: int = 0,
        count: int = 1,
        *,
        client: Any = None,
        timeout_seconds: float = 60.0,
    ) -> None:
        self.index = index
        self.count = count
        self._client = client
        self._timeout = timeout_seconds
        self._rounds: dict[str, int] = {}
        self._scopes = 0
        self._lock = threading.Lock()
        self._shared: BaseException | None = None
        self.broken = False
        if client is not None:
            client.key_value_set(f"datarax/host/{index}", f"pid {os.getpid()} on {socket.gethostname()}")

    @property
    def first(self) -> bool:
        """Whether this is process 0."""
        return self.index == 0

    def exchange(
        self,
        topic: str,
        work: Callable[[], T],
        answer: Callable[[list[T]], Any],
        *,
        about: str | None = None,
        timeout_seconds: float | None = None,
    ) -> Any:
        """Every process does its part; process 0 makes one answer of all parts; every process gets it, or all raise.

        All processes must call this for the same topics in the same order, from one thread per topic.

        Args:
            topic: what it is about, in letters and digits.
            work: the part of this process, a value with JSON. What it raises, all raise.
            answer: from the parts in the order of processes, runs on process 0 only; its result has JSON.
            about: the topic as a person would say it.
            timeout_seconds: how long to wait for the others once this process has done its part; by default the configured
                time, which is meant for parts that all do equally fast.

        Raises:
            PeerLostError: if a process did not come in time, naming it.
            PeerError: if a process failed, naming each and what it said.
            DataraxError: the process's own error, if all failed with the same one.
        """
        if self.count == 1:
            return answer([work()])
        own: Exception | None = None
        try:
            part = json.dumps({"value": work()})
        except Exception as error:
            part, own = json.dumps(_as_part(error)), error
        verdict = self._settle(topic, part, own, answer, about or topic, timeout_seconds or self._timeout)
        if "error" not in verdict:
            return verdict["answer"]
        if verdict.get("disagreement"):
            raise DisagreementError(verdict["error"])
        if own is not None and verdict["unanimous"]:
            self._shared = own
            raise own
        raise PeerError(verdict["error"], exit_code=verdict["code"]) from own

    def next_scope(self) -> str:
        """A name for topics of one pair of threads: the n-th call has the same on all processes."""
        with self._lock:
            self._scopes += 1
            return f"{self._scopes}"

    def is_shared(self, error: BaseException) -> bool:
        """Whether all processes raise this error, or the like, at the same point."""
        return self.count == 1 or error is self._shared or isinstance(error, (PeerError, DisagreementError))

    def missing(self, seconds: float = _SOON) -> list[int]:
        """Which processes do not come to ask the same within some seconds. Each asks once, when it cannot go on."""
        if self.count == 1:
            return []
        absent = list(range(self.count))
        deadline = time.monotonic() + seconds
        try:
            self._client.key_value_set(f"datarax/stopped/{self.index}", "")
            while absent and time.monotonic() < deadline:
                time.sleep(0.05)
                found = self._client.key_value_dir_get("datarax/stopped/")
                absent = sorted(set(range(self.count)) - {int(key.rsplit("/", 1)[1]) for key, _ in found})
        except jax.errors.JaxRuntimeError:
            return [0] if self.index else []  # the coordinator is gone, and with it process 0
        return absent

    def abandon(self, index: int, why: str | None = None) -> None:
        """Tells the others that a process has ended before them, this one or another; they learn it from `abandoned_by`."""
        if self._client is not None:
            with contextlib.suppress(Exception):  # somebody was first, or there is no coordinator any more
                if why is not None:
                    self._client.key_value_set(f"datarax/last_word/{index}", why[:2000])
                self._client.key_value_set("datarax/abandoned", f"{index}")

    def abandoned_by(self) -> str | None:
        """Which other process has ended before the others, and why; None if none has said so."""
        found = self._try_get("datarax/abandoned")
        return None if found is None or int(found) == self.index else self.describe(int(found))

    def describe(self, index: int) -> str:
        """A process as a person needs it: its number, host and pid, and its last word if it left one."""
        host = self._try_get(f"datarax/host/{index}")
        word = self._try_get(f"datarax/last_word/{index}")
        text = f"process {index}" + (f" ({host})" if host else "")
        return f"{text}, which ended with: {word}" if word else text

    def _settle(
        self,
        topic: str,
        part: str,
        own: Exception | None,
        answer: Callable[[list[Any]], Any],
        about: str,
        timeout: float,
    ) -> dict[str, Any]:
        """What process 0 makes of the parts of all: `answer`, or `error` and of what kind it is."""
        prefix = self._next_prefix(topic)
        try:
            self._client.key_value_set(f"{prefix}/parts/{self.index}", part)
            self._client.wait_at_barrier(prefix.replace("/", "_"), int(timeout * 1000))
            if self.first:
                verdict = self._verdict(prefix, answer, about)
                self._client.key_value_set(f"{prefix}/answer", verdict)
            else:
                verdict = self._client.blocking_key_value_get(f"{prefix}/answer", int(timeout * 1000))
        except jax.errors.JaxRuntimeError as error:
            raise self._lost(str(error), about, timeout) from (own or error)
        return json.loads(verdict)

    def _next_prefix(self, topic: str) -> str:
        with self._lock:
            number = self._rounds.get(topic, 0) + 1
            self._rounds[topic] = number
        if self.first and number > 2:
            # All have read the answer before last: they had to, to come to the barrier of the last one.
            self._client.key_value_delete(f"datarax/{topic}/{number - 2}")
        return f"datarax/{topic}/{number}"

    def _verdict(self, prefix: str, answer: Callable[[list[Any]], Any], about: str) -> str:
        found = self._client.key_value_dir_get(f"{prefix}/parts/")
        parts = {int(key.rsplit("/", 1)[1]): json.loads(value) for key, value in found}
        failed = {index: part for index, part in sorted(parts.items()) if "error" in part}
        if failed:
            texts = {part["error"] for part in failed.values()}
            unanimous = len(failed) == self.count and len(texts) == 1
            said = "".join(f"\n  {self.describe(i)}: {part['error']}" for i, part in failed.items())
            text = f"{about} was given up by all {self.count} processes, because it failed on {_named(list(failed))}:{said}"
            code = next(iter(failed.values()))["code"]
            return json.dumps({"error": text, "code": code, "unanimous": unanimous})
        try:
            return json.dumps({"answer": answer([parts[index]["value"] for index in range(self.count)])})
        except DisagreementError as error:
            return json.dumps({"error": str(error), "disagreement": True})
        except Exception as error:
            failure = _as_part(error)
            return json.dumps({**failure, "error": f"{about} failed: {failure['error']}", "unanimous": False})

    def _lost(self, said: str, about: str, timeout: float) -> PeerLostError:
        reached = re.search(r"reached the barrier: (\d+/\d+)", said)
        names = re.search(r"timed out task names:\s*((?:\d+\s*)+)", said)
        missing = [int(word) for word in names.group(1).split()] if names else []
        if not missing:
            missing = [int(word) for word in dict.fromkeys(re.findall(r"[Tt]ask:? (\d+)", said))]
        missing = [index for index in missing if index != self.index and index < self.count]
        if not missing and self.index and not reached:
            missing = [0]
        who = ", ".join(self.describe(index) for index in missing) or "another process"
        count = f" ({reached.group(1)} reached it)" if reached else ""
        return PeerLostError(
            f"{about}: {who} did not come within {timeout:g} seconds{count}; it may have died, hang, or be cut off. "
            f"This is process {self.index} of {self.count}",
            missing=missing,
        )

    def _try_get(self, key: str) -> str | None:
        try:
            return self._client.key_value_try_get(key)
        except Exception:  # no such key, or no coordinator any more
            return None


def _as_part(error: Exception) -> dict[str, Any]:
    if isinstance(error, DataraxError):
        return {"error": str(error), "code": error.exit_code}
    return {"error": f"{type(error).__name__}: {error}", "code": 74 if isinstance(error, OSError) else 70}


def check_agreement(parts: Sequence[Mapping[str, Any]], about: str) -> None:
    """Compares what each process says of the same things.

    Raises:
        DisagreementError: naming each thing, its values and who holds them.
    """
    if len(parts) == 1:
        return
    lines = []
    for name in sorted({name for part in parts for name in part}):
        holders: dict[str, list[int]] = {}
        for index, part in enumerate(parts):
            holders.setdefault(json.dumps(part.get(name), sort_keys=True), []).append(index)
        if len(holders) > 1:
            said = ", ".join(f"{value} on {_named(indices)}" for value, indices in holders.items())
            lines.append(f"\n  {name} is {said}")
    if lines:
        raise DisagreementError(f"{about}: the processes disagree, so all of them stop{''.join(lines)}")


def _named(indices: Sequence[int]) -> str:
    shown = ", ".join(map(str, indices[:8])) + (" …" if len(indices) > 8 else "")
    return f"process {shown}" if len(indices) == 1 else f"processes {shown}"
