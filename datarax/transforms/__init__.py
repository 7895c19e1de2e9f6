"""Records to rows: functions on records and on batches, with randomness keyed by the record.

Read `transform.py` first (what a transform is), then `apply.py` (how rows go through a pipeline), `stack.py`
(records into columns), `randomness.py` (what a random transform draws from) and `identity.py` (what makes two
transforms the same).
"""

from datarax.transforms.apply import apply_transforms as apply_transforms
from datarax.transforms.identity import IDENTITY_VERSION as IDENTITY_VERSION
from datarax.transforms.identity import function_identity as function_identity
from datarax.transforms.identity import pipeline_identity as pipeline_identity
from datarax.transforms.identity import transform_identity as transform_identity
from datarax.transforms.identity import value_identity as value_identity
from datarax.transforms.load import load_transform as load_transform
from datarax.transforms.purity import function_impurities as function_impurities
from datarax.transforms.purity import impurities as impurities
from datarax.transforms.randomness import generator_from_seed as generator_from_seed
from datarax.transforms.randomness import keys_from_seeds as keys_from_seeds
from datarax.transforms.randomness import random_bits as random_bits
from datarax.transforms.randomness import random_integers as random_integers
from datarax.transforms.randomness import random_uniform as random_uniform
from datarax.transforms.stack import stack as stack
from datarax.transforms.stack import unstack as unstack
from datarax.transforms.transform import Level as Level
from datarax.transforms.transform import Randomness as Randomness
from datarax.transforms.transform import Transform as Transform
from datarax.transforms.transform import check_pipeline as check_pipeline
from datarax.transforms.transform import map_batch as map_batch
from datarax.transforms.transform import map_records as map_records
from datarax.transforms.transform import random_map_batch as random_map_batch
from datarax.transforms.transform import random_map_records as random_map_records

__all__ = [
    "IDENTITY_VERSION",
    "Level",
    "Randomness",
    "Transform",
    "apply_transforms",
    "check_pipeline",
    "function_identity",
    "function_impurities",
    "generator_from_seed",
    "impurities",
    "keys_from_seeds",
    "load_transform",
    "map_batch",
    "map_records",
    "pipeline_identity",
    "random_bits",
    "random_integers",
    "random_map_batch",
    "random_map_records",
    "random_uniform",
    "stack",
    "transform_identity",
    "unstack",
    "value_identity",
]
