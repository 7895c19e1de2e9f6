"""An existing Grain pipeline as a datarax module: its own state, with our identity, digests and strict restore.

Read `pipeline.py` first, then `graph.py` (what the pipeline is made of), `identity.py`, `refusals.py`, `iterators.py`.
"""

from datarax.grain_pipeline.config import GrainPipelineConfig as GrainPipelineConfig
from datarax.grain_pipeline.config import GrainPipelineTable as GrainPipelineTable
from datarax.grain_pipeline.load import load_grain_pipeline as load_grain_pipeline
from datarax.grain_pipeline.pipeline import GrainPipeline as GrainPipeline

__all__ = ["GrainPipeline", "GrainPipelineConfig", "GrainPipelineTable", "load_grain_pipeline"]
