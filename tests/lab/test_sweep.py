"""A sweep: each point once, whatever dies, fails or is stopped in between; equal to one measured in this process."""

import json
import math
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from click.testing import CliRunner
from distributed import Client
from fake_points import Sum

from nbtools.__main__ import main
from nbtools.data.images import Images, draw_clean
from nbtools.defender import AWM, FMP, FineTune, Suspiciousness
from nbtools.lab import points
from nbtools.lab import sweep as sweeping
from nbtools.lab.cluster import cluster
from nbtools.lab.grids import read
from nbtools.lab.points import Point, Setup, code, measure
from nbtools.lab.store import Grid, Store, tidy
from nbtools.lab.sweep import Scale, sweep
from nbtools.settings import PROFILES

TWO = Scale(workers=2)


@pytest.fixture(scope="module")
def two() -> Iterator[Client]:
    """A cluster of two workers for the tests that don't ask how it comes up."""
    with cluster(2) as client:
        yield client


@pytest.fixture
def shared(two: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """That cluster instead of one for each sweep."""
    monkeypatch.setattr(sweeping, "cluster", lambda *_: nullcontext(two))


def sums(log: Path, number: int, **does: str) -> Grid:
    return Grid([Sum(n, str(log), does.get(f"at{n}", does.get("rest", ""))) for n in range(number)], "numbers: all\n")


def measured(log: Path) -> list[int]:
    return sorted(int(line.split()[0]) for line in log.read_text().splitlines())


@pytest.mark.usefixtures("shared")
def test_each_point_is_a_row_once_and_a_failure_is_one_too(tmp_path: Path) -> None:
    said: list[str] = []
    log, store = tmp_path / "log", Store(tmp_path / "out")
    outcome = sweep(sums(log, 7, at3="fail", at4="save", at5="save"), store, TWO, say=said.append)
    assert (outcome.found, outcome.done, outcome.failed, outcome.interrupted) == (0, 7, 1, False)
    table = pd.read_csv(outcome.table, keep_default_na=False)
    assert list(table.number) == list(range(7)), "in the grid's order"
    assert [row["sum"] for row in table.to_dict("records") if row["number"] != 3] == [
        "1.0",
        "2.0",
        "3.0",
        "5.0",
        "6.0",
        "7.0",
    ]
    assert table.error[3] == "ValueError: but of others" and (table.error.drop(3) == "").all()
    assert measured(log) == list(range(7)) and len({line.split()[1] for line in log.read_text().splitlines()}) <= 2
    assert "7/7" in said[-1] and "1 failed" in said[-1] and "0 running" in said[-1]
    assert pd.read_csv(store.folder / "saved.csv").a.to_list() == [4, 5], "the tables that the points left"
    assert (store.folder / "grid.yaml").read_text() == "numbers: all\n"
    assert not list(store.folder.rglob("*.partial"))

    again = sweep(sums(log, 7), store, TWO, say=said.append)
    assert (again.found, again.done) == (7, 0) and len(measured(log)) == 7, "nothing is measured twice"
    retried = sweep(sums(log, 8), store, TWO, retry=True, say=said.append)
    assert (retried.found, retried.done, retried.failed) == (6, 2, 0), "what failed, when asked to, and what is new"
    assert list(pd.read_csv(retried.table)["sum"]) == [n + 1 for n in range(8)]


def test_a_worker_that_dies_has_its_point_run_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    outcome = sweep(sums(log, 6, at2="die once", rest="wait"), Store(tmp_path / "out"), TWO, say=lambda _: None)
    assert (outcome.done, outcome.failed) == (6, 0)
    assert list(pd.read_csv(outcome.table)["sum"]) == [1, 2, 3, 4, 5, 6]
    assert measured(log).count(2) == 2


@pytest.mark.usefixtures("shared")
def test_a_sweep_that_is_stopped_goes_on(tmp_path: Path) -> None:
    log, store, said = tmp_path / "log", Store(tmp_path / "out"), []

    def stop(line: str) -> None:
        said.append(line)
        if "3/8" in line:
            raise KeyboardInterrupt

    first = sweep(sums(log, 8, rest="wait"), store, TWO, say=stop)
    assert first.interrupted and first.done == 3 and len(pd.read_csv(first.table)) == 3
    kept = {path.name: path.read_bytes() for path in (store.folder / "rows").iterdir()}
    assert len(kept) == 3
    second = sweep(sums(log, 8), store, TWO, say=said.append)
    assert (second.found, second.done, second.interrupted) == (3, 5, False)
    assert list(pd.read_csv(second.table)["sum"]) == [n + 1 for n in range(8)]
    assert all((store.folder / "rows" / name).read_bytes() == data for name, data in kept.items())


@pytest.mark.usefixtures("shared")
def test_a_damaged_row_is_measured_again(tmp_path: Path) -> None:
    log, store = tmp_path / "log", Store(tmp_path / "out")
    sweep(sums(log, 3), store, TWO, say=lambda _: None)
    (store.folder / "rows.csv").unlink()
    (store.folder / "rows" / "sum1.json").write_text('{"sum": ')
    (store.folder / "rows" / "sum2.json").write_text("[]")
    outcome = sweep(sums(log, 3), store, TWO, say=lambda _: None)
    assert outcome.done == 2 and list(pd.read_csv(outcome.table)["sum"]) == [1, 2, 3]


@pytest.mark.usefixtures("shared")
def test_the_table_alone_is_enough_to_go_on(tmp_path: Path) -> None:
    log, first = tmp_path / "log", Store(tmp_path / "out")
    table = sweep(sums(log, 3), first, TWO, say=lambda _: None).table
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(table, other)
    outcome = sweep(sums(log, 4), Store(other), TWO, say=lambda _: None)
    assert (outcome.found, outcome.done) == (3, 1) and measured(log) == [0, 1, 2, 3]
    assert list(pd.read_csv(outcome.table)["sum"]) == [1, 2, 3, 4]


def test_two_sweeps_do_not_write_to_one_folder(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with store.claimed(), pytest.raises(ValueError, match="another sweep writes to"):
        sweep(sums(tmp_path / "log", 1), Store(tmp_path), TWO)


@contextmanager
def scheduler(folder: Path, *resources: str) -> Iterator[str]:
    """A Dask scheduler and a worker, each a process of its own, over TCP."""
    begun = []
    try:
        file = folder / "scheduler.json"
        command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
        begun.append(subprocess.Popen([*command, "--scheduler-file", str(file)], stderr=subprocess.DEVNULL))
        command = [sys.executable, "-m", "distributed.cli.dask_worker", "--host", "127.0.0.1"]
        here = {"cwd": Path(__file__).parents[1], "stderr": subprocess.DEVNULL}
        begun.append(subprocess.Popen([*command, "--scheduler-file", str(file), "--nthreads", "1", *resources], **here))
        for _ in range(300):
            if file.is_file() and file.stat().st_size:
                break
            time.sleep(0.1)
        yield json.loads(file.read_text())["address"]
    finally:
        for process in begun:
            process.terminate()
        for process in begun:
            process.wait(20)


def test_a_scheduler_that_is_there_already_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    log = tmp_path / "log"
    with scheduler(tmp_path) as address:
        scale = Scale(scheduler=address, threads=3)
        outcome = sweep(sums(log, 4), Store(tmp_path / "out"), scale, say=lambda _: None)
    assert outcome.done == 4 and set(pd.read_csv(outcome.table).threads) == {3}


def test_a_worker_with_a_gpu_takes_one_point_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    asked: list[object] = []
    submit = Client.submit
    monkeypatch.setattr(
        Client, "submit", lambda self, *a, **options: asked.append(options["resources"]) or submit(self, *a, **options)
    )
    with scheduler(tmp_path, "--resources", "GPU=1") as address:
        with Client(address) as client:
            client.wait_for_workers(1, timeout=60)
        outcome = sweep(
            sums(tmp_path / "log", 2), Store(tmp_path / "out"), Scale(scheduler=address), say=lambda _: None
        )
    assert outcome.done == 2 and asked == [{"GPU": 1}] * 2


def test_a_scheduler_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbtools.lab.cluster.PATIENCE", "1s")
    with pytest.raises(ValueError, match=r"no Dask scheduler answers at tcp://127\.0\.0\.1:9"):
        sweep(sums(tmp_path / "log", 1), Store(tmp_path / "out"), Scale(scheduler="tcp://127.0.0.1:9"))


GRID = """
profile: quick
attack: badnets
poison_rate: 0.1
epochs: 1
small: true
defence: [clp, {suspiciousness: {mu: [1, 2], fine_tune: null}}]
samples_per_class: [1, 2]
"""


def test_rows_of_the_command_equal_those_measured_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBTOOLS_CACHE", str(tmp_path / "cache"))
    path, out = tmp_path / "small.yaml", tmp_path / "out"
    path.write_text(GRID)
    dry = CliRunner().invoke(main, ["sweep", str(path), "--out", str(out), "--dry-run"])
    assert dry.exit_code == 0 and not out.exists()
    assert "0 with a row already\n6 to measure, on 1 model\n" in dry.output
    done = CliRunner().invoke(main, ["sweep", str(path), "--out", str(out), "--workers", "2"])
    assert done.exit_code == 0, done.output
    assert "6 of 6 rows, 0 new ones failed" in done.output and "6/6" in done.output
    table = pd.read_csv(out / "rows.csv", keep_default_na=False)
    points = [point for point in read(path).points if isinstance(point, Point)]
    assert list(table.id) == [point.id for point in points]
    assert set(table.width) == {16} and set(table.epochs) == {1} and set(table.dataset) == {"shapes"}
    assert sorted(pd.read_csv(out / "table.csv").mu.unique()) == [1, 2, 3]

    shutil.copytree(tmp_path / "cache" / "models", tmp_path / "serial" / "models")  # the model, but none of the rows
    monkeypatch.setenv("NBTOOLS_CACHE", str(tmp_path / "serial"))
    own = {}
    for point, row in zip(points, table.to_dict("records"), strict=True):
        own = measure(point)
        for name in ("acc_before", "asr_before", "acc_after", "asr_after", "ra_after", "pruned", "der", "settings"):
            assert row[name] == own[name], name
    looked = measure(replace(points[-1], glance=True))
    assert (looked["test_images"], own["test_images"]) == (500, 1_000) and looked["pruned"] == own["pruned"]
    assert len(list((tmp_path / "cache" / "models").glob("*/card.json"))) == 1, "trained once, in the sweep's cache"


def test_the_table_to_work_with_has_a_column_for_each_setting_that_differs() -> None:
    defences = [
        Suspiciousness(mu=1, powers={"sigma": 1}, fine_tune=FineTune()),
        Suspiciousness(mu=3, fine_tune=None, saliency="softened"),
        Suspiciousness(fine_tune=FineTune(lr=1)),
    ]
    rows = pd.DataFrame({"id": ["a", "b", "c"], "settings": map(repr, defences), "error": "", "asr_after": [1.0, 2, 3]})
    table = tidy(rows)
    assert list(table) == ["asr_after", "mu", "saliency", "powers", "fine_tune", "fine_tune.lr"]
    assert list(table.saliency) == [Suspiciousness().saliency, "softened", Suspiciousness().saliency]
    assert list(table.mu) == [1, 3, Suspiciousness().mu] and list(table.fine_tune) == ["FineTune", "None", "FineTune"]
    assert table.powers[0] == repr({"sigma": 1}) != table.powers[1]
    assert table["fine_tune.lr"].tolist()[::2] == [1e-3, 1] and math.isnan(table["fine_tune.lr"].tolist()[1])


def test_a_setting_never_hides_behind_a_column_nor_beside_another_defence() -> None:
    defences = [FMP(seed=1), FMP(seed=2), Suspiciousness(), AWM()]
    rows = pd.DataFrame({"settings": map(repr, defences), "seed": 0, "asr_after": [1.0, 2, 3, 4]})
    table = tidy(rows)
    assert list(table) == ["seed", "asr_after", "defence.seed"], "AWM's rounds are not the score's, and neither differs"
    assert table.seed.tolist() == [0] * 4 and table["defence.seed"].tolist()[:2] == [1, 2]


def test_the_threads_are_those_of_the_sweep_for_every_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NBTOOLS_CACHE", str(tmp_path))
    before = torch.get_num_threads()
    try:
        for _ in range(2):  # made, then found
            torch.set_num_threads(2)
            points._run(Setup("quick"), "", "cpu")
            assert torch.get_num_threads() == 2 != PROFILES["quick"].threads
    finally:
        torch.set_num_threads(before)
        points._run.cache_clear()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["none.yaml"], "No such file"),
        (["bad.yaml"], "unknown 'attacks'"),
        (["good.yaml", "--notebook", "77"], "77"),
        (["good.yaml", "--notebook", "06"], "There is no parameter 'defence'"),
        (["good.yaml", "--profile", "huge"], "huge"),
    ],
)
def test_the_command_refuses_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], told: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("bad.yaml").write_text("attacks: badnets\n")
    Path("good.yaml").write_text("attack: badnets\npoison_rate: 0.1\ndefence: clp\n")
    refused = CliRunner().invoke(main, ["sweep", *arguments, "--out", "out"])
    assert refused.exit_code == 2 and told in refused.output and not Path("out").exists()


def test_missing_data_are_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nbtools.data.places.data_places", lambda data=None: [tmp_path])
    Path("good.yaml").write_text("attack: badnets\npoison_rate: 0.1\ndefence: clp\nprofile: laptop\n")
    counted = CliRunner().invoke(main, ["sweep", "good.yaml", "--out", "out", "--dry-run"])
    assert counted.exit_code == 2 and "1 to measure" in counted.output and "CIFAR-10 is not here." in counted.output
    refused = CliRunner().invoke(main, ["sweep", "good.yaml", "--out", "out"])
    assert refused.exit_code == 2 and "CIFAR-10 is not here." in refused.output and not Path("out").exists()


def test_nothing_is_trained_for_draws_that_the_images_do_not_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []
    images = Images(torch.zeros(9, 3, 4, 4, dtype=torch.uint8), torch.arange(9) % 2, ("rare", "usual"))
    monkeypatch.setattr(points, "_run", lambda *_: SimpleNamespace(draw=lambda *asked: draw_clean(images, *asked)))
    monkeypatch.setattr(points, "_trained", lambda model, *_: trained.append(model.attack))
    model = points.Model(Setup("quick"), "none")
    with pytest.raises(ValueError, match="'usual' has 4 clean images in the pool, 10 were asked for"):
        points.train(model, "", 1, "", [(10, 0, 0), (20, 0, 0)])
    assert trained == []
    points.train(model, "", 1, "", [(10, 0, 0), (4, 0, 1)])
    points.train(model, "", 1, "")
    assert trained == ["none", "none"], "one draw that can be had is enough"


def test_a_worker_with_another_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    path.write_text(GRID)
    (point, *_) = read(path).points
    with pytest.raises(RuntimeError, match="another version of nbtools"):
        point.measure("", 1, "other")
    assert len(code()) == 16
