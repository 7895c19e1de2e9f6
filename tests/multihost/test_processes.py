"""How processes agree: JAX's own coordination service, its real clients, one per thread."""

import time
from contextlib import contextmanager

import pytest
from jax._src.lib import _jax

from datarax.core.errors import (
    ConfigError,
    DisagreementError,
    PeerError,
    PeerLostError,
    SaveError,
)
from datarax.multihost import Processes, check_agreement
from tests.support.coordination import together
from tests.support.processes import free_port


@contextmanager
def coordinated(count, timeout_seconds=20.0):
    """The processes of one run, as seen from each of them; real clients of a real service."""
    port = free_port()
    service = _jax.get_distributed_runtime_service(
        f"[::]:{port}", count, heartbeat_timeout=100, shutdown_timeout=10, recoverable=False
    )
    clients = [
        _jax.get_distributed_runtime_client(
            f"localhost:{port}", index, init_timeout=30, use_compression=True, heartbeat_timeout=100
        )
        for index in range(count)
    ]
    together(count, lambda index: clients[index].connect())
    processes = [
        Processes(index, count, client=client, timeout_seconds=timeout_seconds)
        for index, client in enumerate(clients)
    ]
    try:
        yield processes
    finally:
        together(count, lambda index: clients[index].shutdown())
        service.shutdown()


@pytest.fixture(scope="module")
def three():
    with coordinated(3) as processes:
        yield processes


def test_all_get_the_one_answer_that_process_0_makes(three):
    asked = []

    def act(index):
        def answer(parts):
            asked.append(index)
            return {"sum": sum(parts), "in order": parts}

        return three[index].exchange("sum", lambda: 10**20 + index, answer)

    results = together(3, act)
    assert results == [{"sum": 3 * 10**20 + 3, "in order": [10**20, 10**20 + 1, 10**20 + 2]}] * 3
    assert asked == [0]


def test_exchanges_of_one_topic_keep_in_step_and_leave_little_behind(three):
    def act(index):
        answers = []
        for number in range(30):
            time.sleep(0.001 * ((index * 7 + number) % 3))
            answers.append(three[index].exchange("often", lambda number=number: number, lambda parts: parts))
        return answers

    assert together(3, act) == [[[number] * 3 for number in range(30)]] * 3
    kept = {key.split("/")[2] for key, _ in three[0]._client.key_value_dir_get("datarax/often/")}
    assert kept <= {"29", "30"}


def test_topics_of_several_threads_do_not_mix(three):
    def act(index):
        def one(topic):
            return [
                three[index].exchange(
                    f"t{topic}", lambda number=number: [topic, number], lambda parts: parts[1:]
                )
                for number in range(10)
            ]

        return together(4, one)

    for result in together(3, act):
        assert result == [[[[topic, number]] * 2 for number in range(10)] for topic in range(4)]


def test_large_parts_arrive_whole(three):
    text = "x" * 3_000_000
    results = together(
        3, lambda index: three[index].exchange("large", lambda: text, lambda parts: [len(p) for p in parts])
    )
    assert results == [[3_000_000] * 3] * 3


def test_what_fails_on_one_fails_on_all_and_names_it(three):
    def act(index):
        def work():
            if index == 1:
                raise SaveError("the disk is full")
            return index

        return three[index].exchange("fails", work, lambda parts: parts, about="the save of step 8")

    results = together(3, act)
    assert {type(result) for result in results} == {PeerError}
    assert {result.exit_code for result in results} == {74}
    (text,) = {str(result) for result in results}
    assert "the save of step 8 was given up by all 3 processes, because it failed on process 1" in text
    assert "process 1 (pid " in text
    assert "the disk is full" in text
    assert isinstance(results[1].__cause__, SaveError)
    assert all(process.is_shared(result) for process, result in zip(three, results, strict=True))


def test_what_fails_alike_on_all_is_raised_as_what_it_is(three):
    def act(index):
        def work():
            raise ConfigError("steps must be positive")

        return three[index].exchange("alike", work, lambda parts: parts)

    results = together(3, act)
    assert [type(result) for result in results] == [ConfigError] * 3
    assert all(process.is_shared(result) for process, result in zip(three, results, strict=True))
    assert not three[0].is_shared(ConfigError("steps must be positive"))


def test_an_answer_that_cannot_be_made_fails_on_all(three):
    def act(index):
        def answer(parts):
            raise ZeroDivisionError("odd parts")

        return three[index].exchange("unanswered", lambda: 1, answer, about="the sum")

    results = together(3, act)
    assert {(type(result), str(result)) for result in results} == {
        (PeerError, "the sum failed: ZeroDivisionError: odd parts")
    }


def test_disagreement_names_the_thing_its_values_and_who_holds_them(three):
    def act(index):
        facts = {"the step": 8 if index != 1 else 9, "the identity": "abc"}
        return three[index].exchange("facts", lambda: facts, lambda parts: check_agreement(parts, "the save"))

    results = together(3, act)
    assert {type(result) for result in results} == {DisagreementError}
    (text,) = {str(result) for result in results}
    assert text.endswith("the step is 8 on processes 0, 2, 9 on process 1")
    assert "the identity" not in text


def test_a_fact_that_one_lacks_is_a_disagreement():
    with pytest.raises(DisagreementError, match=r"b is 1 on process 0, null on process 1"):
        check_agreement([{"a": 1, "b": 1}, {"a": 1}], "x")
    with pytest.raises(DisagreementError, match=r"b is null on process 0, 1 on process 1"):
        check_agreement([{"a": 1}, {"a": 1, "b": 1}], "x")
    check_agreement([{"a": 1, "b": 1}, {"b": 1, "a": 1}], "x")


@pytest.mark.parametrize("absent", [0, 1, 2])
@pytest.mark.few(1)
def test_who_does_not_come_is_missed_by_name_at_the_deadline(absent):
    with coordinated(3) as processes:

        def act(index):
            if index == absent:
                return None
            return processes[index].exchange(
                "late", lambda: None, lambda parts: None, about="the save of step 8", timeout_seconds=1.0
            )

        begun = time.monotonic()
        results = together(3, act)
        assert time.monotonic() - begun < 15
        for index, result in enumerate(results):
            if index != absent:
                assert type(result) is PeerLostError
                assert result.missing == (absent,)
                assert "2/3 reached it" in str(result)
                assert f"process {absent} (pid " in str(result)
                assert "did not come within 1 seconds" in str(result)
                assert not processes[index].is_shared(result)


def test_who_stops_too_is_not_missing():
    with coordinated(3) as processes:
        assert together(3, lambda index: processes[index].missing(20.0)) == [[]] * 3


def test_who_goes_on_or_is_gone_is_missing():
    with coordinated(3) as processes:
        absent = together(3, lambda index: processes[index].missing(1.0) if index != 1 else None)
        assert absent == [[1], None, [1]]


def test_who_ends_before_the_others_says_so_and_why():
    with coordinated(3) as processes:
        assert [each.abandoned_by() for each in processes] == [None] * 3
        processes[2].abandon(2, "ValueError: odd")
        assert processes[2].abandoned_by() is None
        for each in processes[:2]:
            assert "process 2 (pid " in each.abandoned_by()
            assert "which ended with: ValueError: odd" in each.abandoned_by()
        processes[1].abandon(1)
        assert "process 2" in processes[0].abandoned_by(), "the first counts"


def test_what_one_says_of_another_the_others_hear():
    with coordinated(3) as processes:
        processes[0].abandon(1)
        assert processes[2].abandoned_by() == processes[2].describe(1)
        assert processes[1].abandoned_by() is None


def test_one_process_alone_asks_nobody():
    alone = Processes()
    assert alone.exchange("x", lambda: object, lambda parts: parts) == [object]
    assert alone.missing() == []
    with pytest.raises(ZeroDivisionError):
        alone.exchange("x", lambda: 1 / 0, lambda parts: parts)
    assert alone.is_shared(ValueError())
