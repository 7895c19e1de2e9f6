"""A loader is restored only where the steps and batch sizes of its run lead, and the records of the run say so."""

import os

import pytest

from datarax.checkpoint import Checkpointer, SaveConfig, list_steps
from datarax.core.errors import MismatchError
from datarax.loader import DataLoader
from datarax.training import TrainingSession
from tests.training.test_session import ROWS, new_loader


class Moved(DataLoader):
    """Says that it has handed over other rows than it has."""

    by = 0

    def get_state(self):
        state = super().get_state()
        return {**state, "position": state["position"] + self.by}


def saved(directory, by, **changes):
    """A run of 4 batches of 4 rows and 4 more, whose newest snapshot stands `by` rows off."""
    plain = new_loader(**changes)
    loader = Moved(plain.config, plain.source)
    with Checkpointer(directory, config=SaveConfig()) as checkpointer:
        for step in range(1, 9):
            next(loader)
            if step % 4 == 0:
                loader.by = by if step == 8 else 0
                checkpointer.save(step, data=loader)
                checkpointer.wait()


@pytest.mark.parametrize(
    ("by", "remainder", "words"),
    [
        (-2, "drop", "its steps are not whole batches of 4, and this run pads none"),
        (-5, "drop", "steps 0 to 7 are recorded as rows 0 to 26, which are not 8 batches of 4"),
        (-5, "pad", "steps 0 to 7 are recorded as rows 0 to 26, which are not 8 batches of 4"),
        (1, "pad", "steps 0 to 7 are recorded as rows 0 to 32, which are not 8 batches of 4"),
    ],
)
def test_a_loader_at_another_row_than_its_steps_lead_to_is_refused(by, remainder, words, tmp_path):
    saved(tmp_path / "run", by, remainder=remainder)
    session = TrainingSession(tmp_path / "run", loader=new_loader(remainder=remainder), steps=12, stream=None)
    with pytest.raises(MismatchError, match=f"at the global row {32 + by} .*{words}"):
        session.run()
    assert list_steps(tmp_path / "run") == [4, 8]


@pytest.mark.parametrize("taken", [3, 5])
def test_a_snapshot_whose_loader_had_handed_over_more_or_less_than_its_steps_is_refused(taken, tmp_path):
    loader = new_loader()
    with Checkpointer(tmp_path / "run") as checkpointer:
        for _ in range(taken):
            next(loader)
        checkpointer.save(4, data=loader)
    session = TrainingSession(tmp_path / "run", loader=new_loader(), steps=12, stream=None)
    with pytest.raises(MismatchError, match=rf"had handed over {taken} batches \(idx\)"):
        session.run()
    assert list_steps(tmp_path / "run") == [4]


def test_a_loader_where_its_steps_lead_goes_on(tmp_path):
    saved(tmp_path / "run", 0)
    assert TrainingSession(tmp_path / "run", loader=new_loader(), steps=12, stream=None).run().complete


@pytest.mark.parametrize("damaged", [False, True])
def test_a_padded_run_is_prolonged_again_and_again(damaged, tmp_path):
    """60 rows are 7 batches of 8 and one of 4; damage of an older snapshot does not hinder a run whose newest one is good."""
    save = SaveConfig(every_steps=2, keep_latest=100)
    for epochs in (1, 2, 3, 4):
        loader = new_loader(batch_size=8, remainder="pad", num_epochs=epochs)
        session = TrainingSession(tmp_path / "run", loader=loader, save=save, stream=None)
        assert session.run().step == 8 * epochs
        assert loader.position.get_value() == ROWS * epochs
        if damaged and epochs == 3:
            for step in list_steps(tmp_path / "run")[:-1]:
                record = tmp_path / "run" / str(step) / "data" / "record.json"
                os.chmod(record, 0o644)
                record.write_bytes(record.read_bytes().replace(b'"position"', b'"posotion"'))
