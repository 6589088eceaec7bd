"""The controller over a database and an executor that has ended; what it decides is `planning`'s and `scaling`'s."""

from __future__ import annotations

import threading

from modelyard.db import Database
from modelyard.errors import Unavailable
from modelyard.serving.controller import Controller
from modelyard.settings import Settings
from modelyard.storage import Artefacts
from modelyard.telemetry import UNEXPECTED
from modelyard.testing import InlineExecutor, MemoryStore


def test_that_the_supervisor_has_ended_is_a_line_in_the_log_and_no_accident(tmp_path, capsys):
    stop = threading.Event()

    class Ended(InlineExecutor):
        def replicas(self):
            stop.set()
            raise Unavailable("The supervisor does not answer.")

    settings, unexpected = Settings(data=tmp_path), UNEXPECTED.labels("controller")
    db, before = Database(settings.database_url), unexpected._value.get()
    controller = Controller(db, Artefacts(MemoryStore(), settings.cache), Ended(), settings, lambda address: None)
    controller.wake()
    controller.run(stop)
    db.close()
    told = "".join(capsys.readouterr())
    assert "The supervisor does not answer." in told
    assert "Traceback" not in told
    assert unexpected._value.get() == before
