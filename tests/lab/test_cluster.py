"""The one engine: tasks side by side in processes, each as soon as what it needs has ended."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dask
import pytest
from distributed import Client
from fake_points import die, fail, meet, threads

from nbtools.lab.cluster import Ended, Graph, Task, cluster, cores

TESTS = Path(__file__).parents[1]


def until(true: Callable[[], bool], seconds: float = 60) -> None:
    """Wait for something to become true."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come"
        time.sleep(0.02)


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    before = os.environ.get("PYTHONPATH", "")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(TESTS), before])  # workers import the tests' own functions
    try:
        with cluster(2, tries=1, threads_free=True) as found:
            yield found
    finally:
        os.environ["PYTHONPATH"] = before


def worked(client: Client, *tasks: Task, at_once: int = 2) -> list[Ended]:
    return list(Graph(client, tasks, at_once))


def test_tasks_run_at_the_same_time(client: Client, tmp_path: Path) -> None:
    one, two = tmp_path / "1", tmp_path / "2"
    ended = worked(client, Task("one", meet, (one, two)), Task("two", meet, (two, one)))
    assert {end.task.name for end in ended} == {"one", "two"} and all(end.error is None for end in ended)


def test_a_task_waits_for_what_it_needs_and_lets_others_pass(client: Client) -> None:
    needs = frozenset({"slow", "broken"})
    tasks = [Task("slow", time.sleep, (0.5,)), Task("last", os.getpid, needs=needs), Task("broken", fail)]
    ended = worked(client, *tasks, Task("quick", os.getpid))
    assert [end.task.name for end in ended][-2:] == ["slow", "last"], "one that failed has ended, too"
    assert [end.task.name for end in worked(client, *tasks, at_once=1)] == ["slow", "broken", "last"]


def test_what_has_not_begun_can_be_dropped(client: Client) -> None:
    graph = Graph(client, [Task(name, os.getpid) for name in "abc"], 1)
    names = []
    for ended in graph:
        names.append(ended.task.name)
        graph.waiting.clear()
    assert names == ["a"] and graph.left == []


def test_an_end_tells_result_error_and_seconds(client: Client) -> None:
    slept, failed, died, after = worked(
        client, Task("s", time.sleep, (0.2,)), Task("f", fail), Task("d", die), Task("a", os.getpid), at_once=1
    )
    assert slept.error is None and slept.result is None and 0.2 <= slept.seconds < 60
    assert repr(failed.error) == "ValueError('mu is wrong')"
    assert type(died.error).__name__ == "KilledWorker"
    assert after.error is None and after.result != os.getpid(), "another worker has taken its place"


def test_threads_are_left_to_those_who_compute(client: Client) -> None:
    (ended,) = worked(client, Task("threads", threads))
    assert ended.result == os.environ.get("OMP_NUM_THREADS")


def test_an_interrupt_leaves_what_runs_known(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Graph(client, [Task("long", time.sleep, (3,)), Task("next", os.getpid)], 1)
    signal.signal(signal.SIGALRM, signal.default_int_handler)  # SIGINT is ignored where the tests run in the background
    signal.setitimer(signal.ITIMER_REAL, 1)
    with pytest.raises(KeyboardInterrupt):
        list(graph)
    ((task, seconds),) = graph.running
    assert task.name == "long" and 0.5 < seconds < 60 and [t.name for t in graph.left] == ["long", "next"]


def test_workers_end_with_the_process_that_asked(tmp_path: Path) -> None:
    told, script = tmp_path / "told", tmp_path / "script.py"
    script.write_text(
        f"import sys; sys.path[:0] = [{str(TESTS)!r}]\nfrom pathlib import Path\nfrom fake_points import sleep\n"
        "from nbtools.lab.cluster import Graph, Task, cluster\nif __name__ == '__main__':\n"
        f"    with cluster(1) as client:\n        list(Graph(client, [Task('s', sleep, (Path({str(told)!r}),))], 1))\n"
    )
    paths = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    asking = subprocess.Popen([sys.executable, str(script)], env=os.environ | {"PYTHONPATH": paths})
    until(lambda: told.exists() and bool(told.read_text()))
    asking.kill()
    asking.wait()
    place = Path("/proc") / told.read_text()
    if place.parent.is_dir():
        until(lambda: not place.exists(), 20)


def test_a_machine_takes_one_task_a_gpu_or_for_so_many_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    for count, found in ((None, 1), (1, 1), (2, 2), (64, 64)):
        monkeypatch.setattr("os.cpu_count", lambda count=count: count)
        assert cores(1) == found
    assert (cores(4), cores(4, gpus=2)) == (16, 2)


def test_a_scratch_folder_that_can_not_be_made_is_told_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    for folder in (tmp_path / "file", tmp_path / "file" / "scratch"):
        with (
            dask.config.set({"temporary-directory": str(folder)}),  # pyright: ignore[reportPrivateImportUsage]
            pytest.raises(ValueError, match=r"can't write in .*file.*DASK_TEMPORARY_DIRECTORY.*; name a folder"),
            cluster(1),
        ):
            pass
