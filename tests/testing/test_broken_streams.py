"""The kit refuses each kind of broken stream, in words that name the fault."""

import pytest

from datarax.testing import assert_resumes_everywhere
from tests.testing import streams

FRESH = "into a fresh module, in memory"

# What stands in the message, in turn.
FAULTS = {
    streams.OtherAtEachStart: (
        "two fresh modules give different streams: element 0 differs at number: expected int",
    ),
    streams.DisturbedByAsking: ("get_state changes the stream: asked for before each element",),
    streams.CountsAsking: (
        "get_state changes the state: asked twice before element 0",
        "at asked: expected int 1, got int 2",
    ),
    streams.SharesAList: ("the state taken before element 0 shares something with the module", "at pending"),
    streams.SharesAListThatStays: (
        "the state taken before element 0 shares something with the module: changing it changed",
        "at pending",
    ),
    streams.KeepsTheArgument: ("set_state before element 0 keeps a part of its argument", "at pending"),
    streams.EmptiesTheArgument: (
        "restored before element 0",
        "set_state changed the dict that it was given",
        "at index: expected int 0, got nothing",
    ),
    streams.KeepsDeliveredIndices: (
        "the state grows with the position: delivered has 1 items after 1 element and 9 after 9",
    ),
    streams.KeepsDeliveredBits: (
        "the state grows with the position: delivered has 1 items after 1 element and 9 after 9",
    ),
    streams.HoldsData: (
        "the state before element 0 takes",
        "more than 4096; its largest field is 'batch'",
    ),
    streams.HoldsAnObject: (
        "the state before element 0 cannot be put into a snapshot: read is a operator.itemgetter",
    ),
    streams.StateOfTheReadAhead: (
        f"restored before element 1 {FRESH}: element 1 differs",
        "what came is element 2: one element would be lost",
    ),
    streams.KeepsTheReadAhead: (
        "restored before element 0 into a module that was at element 3, in memory: element 0 differs",
        "what came is element 4: 4 elements would be lost",
    ),
    streams.IndexInInt32: (
        f"restored before element 3 {FRESH}",
        "at inner.left: expected int 6, got int 4294967302",
    ),
    streams.OtherKindAfterRestore: (
        f"restored before element 0 {FRESH}",
        "is not that of an undisturbed module, at index: expected int 0, got int32",
    ),
    streams.RunningRandomness: (f"restored before element 1 {FRESH}: element 1 differs at noise",),
    streams.OneBack: (
        f"restored before element 1 {FRESH}",
        "is not that of an undisturbed module, at index: expected int 1, got int 0",
    ),
    streams.OneBackInSecret: (
        f"restored before element 0 {FRESH}: element 1 differs",
        "what came is element 0: one element would come twice",
    ),
    streams.OtherDtypeAfterRestore: (
        f"restored before element 0 {FRESH}: element 0 differs at x",
        "expected ndarray of dtype float32",
        "got ndarray of dtype float64",
    ),
    streams.StaysExhausted: (
        "into a module that was at element 8, in memory: element 1 differs at the whole: expected an element, got the end",
    ),
    streams.EndsOnce: (
        "a fresh module: element 10 differs at the whole: expected the end, got an element; what came is element 0",
    ),
    streams.RestoresWhenAsked: (
        "restored before element 1 into a fresh module, through JSON: element 1 differs",
        "what came is element 0",
    ),
    streams.RefusesItsOwn: (
        f"restored before element 9 {FRESH}",
        "the restore was refused, of a state that an equal module gave: ValueError: there is nothing left",
    ),
    streams.AcceptsAnything: ("set_state accepted a state without 'index'",),
    streams.AcceptsMore: ("set_state accepted a state with an extra key 'one_key_too_many'",),
    streams.AcceptsText: ("set_state accepted a state with the str '9' in place of an integer at 'index'",),
    streams.RefusesTooLate: (
        "set_state refused a state ",
        "but changed the module, at index: expected int 1",
    ),
    streams.RefusesWithKeyError: (
        "set_state of a state without 'index' must raise TypeError or ValueError",
        "raised KeyError: 'index'",
    ),
    streams.ForgetsItsDigest: (
        f"restored before element 1 {FRESH}",
        "goes with another digest than undisturbed, at rows: expected int 1, got int 0",
    ),
    streams.ForgetsAStepDigest: (
        f"restored before element 0 {FRESH}",
        "the digests of single steps differ at 0.0: expected int 0, got nothing",
    ),
    streams.WrongStepDigests: ("the digests of single steps differ at 0.0: expected int 0, got int 1",),
    streams.OtherIdentityAtEachStart: ("from a snapshot on disk: the restore was refused", "number: was "),
}


def check_told(error, phrases):
    message, at = str(error), 0
    for phrase in phrases:
        assert phrase in message[at:]
        at = message.index(phrase, at) + len(phrase)


@pytest.mark.parametrize("broken", FAULTS, ids=lambda broken: broken.__name__)
def test_a_broken_stream_is_refused_by_the_name_of_its_fault(broken):
    with pytest.raises(AssertionError) as caught:
        assert_resumes_everywhere(broken)
    check_told(caught.value, FAULTS[broken])


@pytest.mark.parametrize("correct", [streams.Stream, streams.WithDigests])
def test_the_streams_without_a_fault_pass(correct):
    assert_resumes_everywhere(correct)


def test_every_broken_stream_of_the_collection_is_tried():
    kinds = {each for each in vars(streams).values() if isinstance(each, type)}
    tried = {*FAULTS, streams.Stream, streams.WithDigests}
    assert {kind for kind in kinds if issubclass(kind, streams.Stream)} == tried
