"""What a teacher is worth to a small student: Fashion-MNIST from 3,000 images, five seeds, each beside the same student from
scratch at equal budget; judged by the 10,000 test images, by which nothing is chosen.
"""

from __future__ import annotations

import math
import sys
import tempfile
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fashion import PACKAGE, write_files
from record import Record, recording

from modelyard.client import Yard
from modelyard.testing import yard

SEEDS, T_OF_4 = 5, 2.776  # Student's t at 95 %, four degrees of freedom
FEW = 3_000  # training images
STUDENT = "distil:student.width=8,student.blocks=2,epochs=20,alpha=0.5,temperature=2"
TEACHER: dict[str, Any] = {
    "epochs": 20,
    "lr": 4e-3,
    "image_classifier": {"width": 16, "blocks": 2, "shift": 1, "flip": True},
}


def main() -> None:
    if not PACKAGE.is_dir():
        sys.exit(f"apt-get install dataset-fashion-mnist: there is no {PACKAGE}")
    with recording("distilling", __doc__ or "") as record, tempfile.TemporaryDirectory() as folder:
        config = TEACHER | {"epochs": 2} if record.quick else TEACHER
        record.parameters = {"images": FEW, "teacher": config, "student": STUDENT, "seeds": SEEDS}
        with yard(Path(folder) / "yard") as platform:
            platform.import_dataset("few", write_files(Path(folder) / "few", FEW), target="label")
            platform.train("teacher", "few@1", "image-classifier", **config)
            lessons(record, platform)


def lessons(record: Record, platform: Yard) -> None:
    """The gain of the distilled student over its control on the report split, each seed a job of its own."""
    gains, scores = [], []
    for seed in range(2 if record.quick else SEEDS):
        version = platform.optimize("teacher@1", steps=[STUDENT], seed=seed, max_accuracy_drop=100.0, seconds=0.2)
        found = version["metadata"]["distillation"]["report"]
        gains.append(found["gain"]["value"])
        scores.append({name: found[name]["value"] for name in ("teacher", "distilled", "control")})
    half = T_OF_4 * stdev(gains) / math.sqrt(len(gains))
    record.figure("gain of the distilled student over its control, mean of the seeds", mean(gains), "points", each=scores)
    record.figure("its lower bound at 95 %", mean(gains) - half, "points", least=0.0, gains=gains)


if __name__ == "__main__":
    main()
