"""The parts of the supervisor that need no process: the lock on a data folder and the private folder of the sockets."""

import os
import stat
from pathlib import Path

import pytest

from modelyard.errors import Conflict, Unavailable
from modelyard.jobs.supervisor import lock, private_folder


def test_a_data_folder_has_one_holder_who_is_named(tmp_path: Path) -> None:
    held = lock(tmp_path / "yard")
    with pytest.raises(Conflict, match=rf"process {os.getpid()}\)"):
        lock(tmp_path / "yard")
    os.close(held)
    os.close(lock(tmp_path / "yard"))


def test_the_folder_of_the_sockets_is_for_one_user(tmp_path: Path) -> None:
    folder = private_folder(tmp_path / "a" / "run")
    folder.chmod(0o755)
    assert stat.S_IMODE(private_folder(folder).stat().st_mode) == 0o700


def test_a_folder_that_was_planted_is_refused(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(Unavailable, match="belongs to someone else"):
        private_folder(tmp_path / "run")
