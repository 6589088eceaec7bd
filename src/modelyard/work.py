"""The job kinds: what a project can ask to be done. One table; the rooms of the machines do the work.

Read by control (to validate and list), by the command line and by gang launchers. Configs are light and loaded here; `run` is
an import path that only a launcher loads. Further kinds come through entry points of the group `modelyard.job_kinds`.
"""

from __future__ import annotations

from modelyard.conversion.config import ImportModelConfig
from modelyard.data.config import ImportDatasetConfig
from modelyard.kinds import JobKind
from modelyard.optimisation.config import OptimiseConfig, check_inputs
from modelyard.optimisation.evaluation_config import EvaluateConfig, check_evaluation
from modelyard.optimisation.search.config import SearchConfig
from modelyard.plugins import Registry
from modelyard.training.config import RESUMABLE, TrainConfig
from modelyard.training.sweep.config import SweepConfig

IMPORT_DATASET = JobKind(
    name="import-dataset",
    config=ImportDatasetConfig,
    run="modelyard.data.importing:run",
    target="dataset",
    optional=("files",),
)
IMPORT_MODEL = JobKind(
    name="import-model",
    config=ImportModelConfig,
    run="modelyard.conversion.importing:run",
    target="model",
    inputs=("files",),
)
TRAIN = JobKind(
    name="train",
    config=TrainConfig,
    run="modelyard.training.loop:run",
    target="model",
    inputs=("dataset",),
    optional=("code", "model", "base"),
    gang=True,
    resumable=RESUMABLE,
)
SWEEP = JobKind(
    name="sweep",
    config=SweepConfig,
    run="modelyard.training.sweep.run:run",
    target="model",
    inputs=("dataset",),
    optional=("code", "model", "base"),
    rejoins=True,
)
OPTIMISE = JobKind(
    name="optimise",
    config=OptimiseConfig,
    run="modelyard.optimisation.optimise:run",
    target="model",
    inputs=("model", "dataset"),
    check=check_inputs,
    evaluates=True,
)
SEARCH = JobKind(
    name="search",
    config=SearchConfig,
    run="modelyard.optimisation.search.run:run",
    target="model",
    inputs=("model", "dataset"),
    check=check_inputs,
    rejoins=True,
)
EVALUATE = JobKind(
    name="evaluate",
    config=EvaluateConfig,
    run="modelyard.optimisation.evaluation:run",
    inputs=("model", "original", "dataset"),
    check=check_evaluation,
    evaluates=True,
)

KINDS: Registry[JobKind] = Registry(
    "job kind",
    {
        "import-dataset": "modelyard.work:IMPORT_DATASET",
        "import-model": "modelyard.work:IMPORT_MODEL",
        "search": "modelyard.work:SEARCH",
        "sweep": "modelyard.work:SWEEP",
        "train": "modelyard.work:TRAIN",
        "evaluate": "modelyard.work:EVALUATE",
        "optimise": "modelyard.work:OPTIMISE",
    },
)
