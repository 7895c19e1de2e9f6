"""An existing Grain pipeline as a datarax module: its own state, with our identity, digests and strict restore.

Read `pipeline.py` first, then `graph.py` (what the pipeline is made of), `identity.py` and `iterators.py`.
"""

from datarax.grain_pipeline.config import GrainPipelineTable, load_grain_pipeline
from datarax.grain_pipeline.pipeline import GrainPipeline, GrainPipelineConfig

__all__ = ["GrainPipeline", "GrainPipelineConfig", "GrainPipelineTable", "load_grain_pipeline"]
