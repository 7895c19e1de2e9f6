"""JAX's coordination service in memory: many "processes" are threads of one, and every byte that travels is counted."""

import threading

import jax

from datarax.multihost import Processes


class Coordinator:
    """Keys and barriers that the clients of `count` processes share."""

    def __init__(self, count):
        self.count = count
        self.keys = {}
        self.barriers = {}
        self.changed = threading.Condition()

    def processes(self, timeout_seconds=60.0):
        """One `Processes` for each of them."""
        return [
            Processes(index, self.count, client=Client(self, index), timeout_seconds=timeout_seconds)
            for index in range(self.count)
        ]


class Client:
    """What `Processes` uses of a client; `sent` and `received` are the bytes of keys and values so far."""

    def __init__(self, service, index):
        self.service, self.index = service, index
        self.sent = self.received = 0

    def key_value_set(self, key, value):
        self.sent += len(key.encode()) + len(value.encode())
        with self.service.changed:
            if key in self.service.keys:
                raise jax.errors.JaxRuntimeError(f"ALREADY_EXISTS: {key}")
            self.service.keys[key] = value
            self.service.changed.notify_all()

    def key_value_try_get(self, key):
        with self.service.changed:
            if key not in self.service.keys:
                raise jax.errors.JaxRuntimeError(f"NOT_FOUND: {key}")
            return self._got(key)

    def blocking_key_value_get(self, key, timeout_ms):
        with self.service.changed:
            if not self.service.changed.wait_for(lambda: key in self.service.keys, timeout_ms / 1000):
                raise jax.errors.JaxRuntimeError(f"DEADLINE_EXCEEDED: {key}")
            return self._got(key)

    def key_value_dir_get(self, prefix):
        with self.service.changed:
            names = [key for key in self.service.keys if key.startswith(prefix)]
            return [(key, self._got(key)) for key in names]

    def key_value_delete(self, prefix):
        with self.service.changed:
            for key in [key for key in self.service.keys if key.startswith(prefix)]:
                del self.service.keys[key]

    def wait_at_barrier(self, name, timeout_ms):
        self.sent += len(name)
        with self.service.changed:
            there = self.service.barriers.setdefault(name, set())
            there.add(self.index)
            self.service.changed.notify_all()
            if not self.service.changed.wait_for(lambda: len(there) == self.service.count, timeout_ms / 1000):
                absent = sorted(set(range(self.service.count)) - there)
                raise jax.errors.JaxRuntimeError(
                    f"DEADLINE_EXCEEDED: # of tasks that reached the barrier: {len(there)}/{self.service.count}. "
                    f"Some timed out task names:\n{' '.join(map(str, absent))}"
                )

    def _got(self, key):
        value = self.service.keys[key]
        self.received += len(key.encode()) + len(value.encode())
        return value


def together(count, act):
    """What each of `count` threads returns or raises."""
    results = [None] * count

    def run(index):
        try:
            results[index] = act(index)
        except BaseException as error:
            results[index] = error

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
