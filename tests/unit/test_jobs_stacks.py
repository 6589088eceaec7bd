"""Which rank hung, from what faulthandler printed."""

import faulthandler
import tempfile

from modelyard.jobs.stacks import Frame, frames, told

TORCH = "/opt/lib/python3.11/site-packages/torch"
HUNG = [
    "some line before",
    "Thread 0x00007f0000000001 (most recent call first):",
    '  File "/usr/lib/python3.11/threading.py", line 1 in wait',
    "",
    "Current thread 0x00007f0000000000 (most recent call first):",
    '  File "/data/jobs/j/t/inputs/model.py", line 12 in forward',
    f'  File "{TORCH}/nn/modules/module.py", line 1518 in _call_impl',
]
WAITS = [
    "Current thread 0x00007f0000000000 (most recent call first):",
    f'  File "{TORCH}/distributed/distributed_c10d.py", line 2501 in all_reduce',
    '  File "/src/modelyard/training/gang.py", line 40 in sum',
    "Extension modules: numpy",
    '  File "/not/a/frame.py", line 1 in later',
]


def test_the_last_call_comes_first() -> None:
    assert frames(HUNG)[0] == Frame("/data/jobs/j/t/inputs/model.py", 12, "forward")
    assert [frame.name for frame in frames(WAITS)] == ["all_reduce", "sum"]
    assert frames(["nothing", "of the kind"]) == []


def test_the_rank_that_does_not_wait_is_the_one_that_hung() -> None:
    assert told({0: WAITS, 1: HUNG}, {0: WAITS, 1: HUNG}) == (
        "Hung: rank 1 in forward (inputs/model.py:12); "
        "rank 0 in all_reduce (distributed/distributed_c10d.py:2501), called by sum (training/gang.py:40) waited for it."
    )


def test_a_file_in_an_artefact_is_told_briefly() -> None:
    assert Frame(f"/cache/{'ab' * 32}/model.py", 3, "forward").shown == "forward (abababababab…/model.py:3)"


def test_a_rank_that_does_not_answer_hung() -> None:
    assert told({0: WAITS, 1: []}, {0: WAITS, 1: []}).startswith("Hung: rank 1 did not answer")


def test_where_all_wait_none_is_blamed() -> None:
    assert told({0: WAITS, 1: WAITS}, {0: WAITS, 1: WAITS}).startswith("All ranks waited for each other: rank 0 in all_reduce")


def test_of_several_that_do_not_wait_the_silent_one_hung() -> None:
    assert told({0: HUNG, 1: HUNG}, [1]).startswith("Hung: rank 1 in forward")
    assert "rank 0" not in told({0: HUNG, 1: HUNG}, [1])


def test_where_the_silent_ones_wait_it_is_for_another() -> None:
    assert told({0: WAITS, 1: HUNG}, [0]).startswith("Hung: rank 1 in forward")


def test_a_large_gang_is_not_listed_whole() -> None:
    assert told(dict.fromkeys(range(12), HUNG), range(12)).endswith(" and 4 more.")


def test_what_this_python_writes_is_understood() -> None:
    with tempfile.TemporaryFile("w+") as file:
        faulthandler.dump_traceback(file)
        file.seek(0)
        assert frames(file.read().splitlines())[0].name == "test_what_this_python_writes_is_understood"
