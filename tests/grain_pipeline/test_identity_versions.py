"""Functions of Grain pipelines are identified by the rules of transforms, and a run is compared by those that it recorded."""

from unittest import mock

import grain
import numpy as np
import pytest

from datarax import Checkpointer, GrainPipeline, GrainPipelineConfig, TrainingSession
from datarax.checkpoint import Snapshot
from datarax.core.errors import ConfigError, MismatchError
from datarax.training import LogConfig
from tests.support import grain_pipelines

RULES = "datarax.grain_pipeline.pipeline.RULES_VERSION"


def imported(x):
    return grain_pipelines.double(x)


def drawing(x):
    return x + np.random.randint(3)


def pipeline(fn=imported, **settings):
    return GrainPipeline(GrainPipelineConfig(**settings), grain.MapDataset.range(20).map(fn))


def saved_by_version_1(run, **settings):
    with mock.patch(RULES, 1):
        made = pipeline(**settings)
    assert made.identity()["rules"] == 1
    with Checkpointer(run) as saver:
        next(made)
        saver.save(1, data=made)


def test_a_run_of_version_1_goes_on_and_says_what_was_not_seen(tmp_path):
    saved_by_version_1(tmp_path)
    made = pipeline()
    with Checkpointer(tmp_path) as saver:
        saver.restore(data=made)
        (note,) = [note for note in saver.notes if "earlier rules" in note]
        assert "map.helpers.double" in note or "helpers.double" in note
        next(made)
        saver.save(2, data=made)
    assert [entry.reason for entry in Snapshot.open(tmp_path).history] == [None, "identity version"]
    assert Snapshot.open(tmp_path).identity["train"]["rules"] == 2


def test_what_version_1_saw_is_still_refused(tmp_path):
    saved_by_version_1(tmp_path)
    with Checkpointer(tmp_path) as saver, pytest.raises(MismatchError, match="source_sha256: was"):
        saver.restore(data=pipeline(lambda x: x + 1))


def session(run, made):
    return TrainingSession(run, loader=made, steps=2, log=LogConfig(every_seconds=9), stream=None)


def test_a_new_run_of_a_function_with_a_memory_is_refused_unless_it_is_declared(tmp_path):
    with pytest.raises(
        ConfigError, match=r"Grain pipeline 'grain': drawing draws .*np.random.randint.*declare it \(impure"
    ):
        session(tmp_path / "refused", pipeline(drawing)).run()
    made = pipeline(drawing, impure=True)
    assert made.identity()["impure"] is True
    assert "impure" not in pipeline().identity()
    assert session(tmp_path / "declared", made).run().complete
