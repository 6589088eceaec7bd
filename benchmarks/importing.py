"""Importing many small files and one large one: how fast, and in how much memory.

70,000 pictures of 28 × 28 (PNG, a folder a class, from a seed) become a dataset version. A file of 5 GB is uploaded and
published. Both beside `cp` and `sha256sum` of the same files, which is the least that keeping them with their hash could cost.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from record import MB, Peaks, Record, data_folder, processes, recording, timed

from modelyard.client import Yard
from modelyard.testing import yard

LIMIT = 300  # MB a process may take
CLIENT = "import sys; from modelyard.client import Yard; print(Yard(data=sys.argv[1]).upload(sys.argv[2]))"


def main() -> None:
    with recording("importing", __doc__ or "") as record, tempfile.TemporaryDirectory() as folder:
        pictures, size = (1000, 800_000_000) if record.quick else (70_000, 5_000_000_000)
        record.parameters = {"pictures": pictures, "file_bytes": size, "folder": "temporary"}
        work = Path(folder)
        draw(work / "pictures", pictures)
        with yard(work / "yard") as platform:
            small(record, platform, work, pictures)
        with yard(work / "other") as platform:
            room = shutil.disk_usage(work).free
            if room < 3.5 * size:
                sys.exit(
                    f"{3.5 * size / 1e9:.0f} GB are needed in {tempfile.gettempdir()}; {room / 1e9:.0f} are free: set TMPDIR."
                )
            large(record, platform, work, size)


def draw(folder: Path, count: int) -> None:
    generator = np.random.default_rng(0)
    for label in range(10):
        (folder / str(label)).mkdir(parents=True)
    for number in range(count):
        pixels = generator.integers(0, 256, (28, 28), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / str(number % 10) / f"{number:05}.png", compress_level=1)


def small(record: Record, platform: Yard, work: Path, count: int) -> None:
    copied, hashed = least(work / "pictures", work / "copies")
    with Peaks(lambda: processes(platform)) as peaks:
        uploaded, artefact = timed(lambda: upload(platform, work / "pictures", peaks))
        inputs, target = {"files": f"artefact:{artefact}"}, {"kind": "dataset", "name": "pictures"}
        imported, _ = timed(lambda: platform.wait(platform.submit("import-dataset", {}, inputs, target=target)["id"]))
    rows = sum(platform.version("pictures", "dataset")["metadata"]["splits"].values())
    record.figure(f"{count} pictures: rows in the dataset", rows, "rows", least=count, most=count)
    record.figure(f"{count} pictures: upload", uploaded, "s", pictures_a_second=count / uploaded)
    record.figure(f"{count} pictures: import job", imported, "s", pictures_a_second=count / imported)
    record.figure(f"{count} pictures: in all", count / (uploaded + imported), "pictures/s")
    record.figure(f"{count} pictures: rate against cp + sha256sum", (copied + hashed) / (uploaded + imported), "×")
    tell(record, f"{count} pictures", peaks.bytes)


def large(record: Record, platform: Yard, work: Path, size: int) -> None:
    source = work / "large" / "large.bin"
    source.parent.mkdir()
    fill(source, size)
    copied, hashed = least(source, work / "copy.bin")
    (work / "copy.bin").unlink()
    with Peaks(lambda: processes(platform)) as peaks:
        uploaded, _ = timed(lambda: upload(platform, source, peaks))
    what = f"a file of {size / 1e9:g} GB"
    record.figure(f"{what}: cp", copied, "s")
    record.figure(f"{what}: sha256sum", hashed, "s")
    record.figure(f"{what}: uploaded and published", uploaded, "s", mb_a_second=size / 1e6 / uploaded)
    record.figure(f"{what}: rate against cp + sha256sum", (copied + hashed) / uploaded, "×")
    tell(record, what, peaks.bytes)


def least(source: Path, copy: Path) -> tuple[float, float]:
    """Seconds of `cp` and of `sha256sum` of a file, or of all files of a folder."""
    hashing = ["find", source, "-type", "f", "-exec", "sha256sum", "{}", "+"]
    copied, _ = timed(lambda: subprocess.run(["cp", "-r", source, copy], check=True))
    hashed, _ = timed(lambda: subprocess.run(hashing, check=True, capture_output=True))
    return copied, hashed


def upload(platform: Yard, source: Path, peaks: Peaks) -> str:
    """By a client process of its own, whose memory is looked at too; returns the artefact's hash."""
    data = str(data_folder(platform))
    with subprocess.Popen([sys.executable, "-c", CLIENT, data, str(source)], stdout=subprocess.PIPE, text=True) as client:
        peaks.watch(client.pid, "client")
        assert client.stdout is not None
        artefact = client.stdout.read().strip()
    if client.returncode:
        raise RuntimeError(f"the upload of {source.name} failed")
    return artefact


def fill(path: Path, size: int) -> None:
    """Bytes that no disk can make smaller, from a seed."""
    generator, piece = np.random.default_rng(0), 1 << 26
    with path.open("wb") as file:
        for start in range(0, size, piece):
            file.write(generator.bytes(min(piece, size - start)))


def tell(record: Record, what: str, peaks: Mapping[str, int]) -> None:
    for role in ("client", "control", "gateway"):
        record.figure(f"{what}: most memory of the {role}", peaks.get(role, 0) / MB, "MB", most=LIMIT)
    others = {role: round(value / MB, 1) for role, value in peaks.items() if role not in ("client", "control", "gateway")}
    if others:
        record.figure(f"{what}: most memory of any other process", max(others.values()), "MB", each=others)


if __name__ == "__main__":
    main()
