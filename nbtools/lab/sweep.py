"""A grid's points as rows of one table, on Dask: stopped and started again, it does what is missing [ours]."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from nbtools.lab import points
from nbtools.lab.cluster import cluster, cores
from nbtools.lab.points import Model, Point
from nbtools.lab.store import Asked, Grid, Store
from nbtools.wording import duration, last_line

if TYPE_CHECKING:
    from distributed import Client, Future


@dataclass(frozen=True)
class Scale:
    """How a sweep is spread.

    Args:
        workers: processes of the cluster that is started; 0 is one a GPU, or one for each `threads` cores.
        threads: of torch on a CPU, for each point. Sums in another order give other models and masks: rows are the same
            on any cluster as long as this is.
        scheduler: the address of a cluster that is there already, such as tcp://10.0.0.5:8786; "" starts one.
    """

    workers: int = 0
    threads: int = 1
    scheduler: str = ""


@dataclass
class Outcome:
    """What became of a sweep: where the table lies, rows there before, rows measured now, and errors among them."""

    table: Path
    found: int
    done: int = 0
    failed: int = 0
    interrupted: bool = False


def sweep(
    grid: Grid,
    store: Store,
    scale: Scale,
    data: str = "",
    retry: bool = False,
    say: Callable[[str], None] = print,
) -> Outcome:
    """Measure a grid's points that have no row yet; one row each, kept as soon as it is there.

    Args:
        grid: what is asked.
        store: the sweep's folder.
        scale: workers, threads, scheduler.
        data: a folder that holds CIFAR-10; "" looks in the usual places.
        retry: measure points anew whose row is an error.
        say: takes one line.

    Returns:
        What became of it. An interrupt (Ctrl-C) ends it; what was measured stays.

    Raises:
        ValueError: where another sweep writes to this folder, or no scheduler answers.
        OSError: where the folder can't be written.
    """
    with store.claimed():
        (store.folder / "grid.yaml").write_text(grid.text, encoding="utf-8")
        missing = [point for point in grid.points if store.lacks(point, retry)]
        outcome = Outcome(store.folder / "rows.csv", len(grid.points) - len(missing))
        try:
            if missing:
                if not scale.scheduler:
                    say(f"starting {lanes(scale)} worker{'s' * (lanes(scale) > 1)}, threads a point: {scale.threads}")
                with cluster(lanes(scale), scale.scheduler) as client:
                    _work(client, missing, store, scale, data, outcome, say)
        except KeyboardInterrupt:
            outcome.interrupted = True
        finally:
            store.collect(grid.points)
    return outcome


def lanes(scale: Scale) -> int:
    """How many points a cluster of our own takes at a time."""
    return scale.workers or cores(scale.threads, torch.cuda.device_count())


def _work(
    client: Client,
    missing: Sequence[Asked],
    store: Store,
    scale: Scale,
    data: str,
    outcome: Outcome,
    say: Callable[[str], None],
) -> None:
    """Submit models and points, keep each row as it comes, and print a line for it."""
    from distributed import as_completed

    described: dict[str, Any] = client.scheduler_info(n_workers=-1)["workers"]  # by default it tells of five
    # A point and a training take a worker's whole GPU, where workers have said that they have one.
    gpu = {"GPU": 1} if any(worker["resources"].get("GPU") for worker in described.values()) else {}
    code, own = points.code(), secrets.token_hex(4)  # on a shared cluster a name may be known from another sweep
    asked: dict[Future, Asked] = {}
    models: dict[Model | None, Future | None] = {None: None}
    names: dict[Future, str] = {}
    draws: dict[Model, list[tuple[int, int, int]]] = {}
    for point in missing:
        if isinstance(point, Point):
            draws.setdefault(point.model, []).append((point.samples_per_class, point.n_total, point.draw))
    for point in missing:
        model = point.model
        if model not in models:
            key = f"model-{model.id}-{own}"
            told = (model, data, scale.threads, code, draws[model])
            training = client.submit(points.train, *told, key=key, resources=gpu)
            models[model], names[training] = training, model.name
        arguments = (models[model], point, data, scale.threads, code)
        asked[client.submit(_measure, *arguments, key=f"point-{point.id}-{own}", resources=gpu)] = point
    started, number, noted = time.monotonic(), len(missing), {""}
    try:
        for future in as_completed([*names, *asked], raise_errors=False):
            if future in names:
                if future.status == "finished" and future.result() > 20:
                    say(f"{'':>{2 * len(str(number)) + 3}}{names[future]} trained in {duration(future.result())}")
                continue
            point = asked.pop(future)
            row, files = _result(future, point)
            store.keep(point, row, files)
            future.release()
            outcome.done += 1
            outcome.failed += bool(row["error"])
            if (notes := row.get("notes", "")) not in noted:
                noted.add(notes)
                say(f"Note on the images of {row.get('dataset', 'this set')}: {notes}")
            left, places = number - outcome.done, sum(dict(client.nthreads()).values())  # pyright: ignore[reportCallIssue, reportArgumentType]
            rest = duration((time.monotonic() - started) / outcome.done * left)
            told = f"{outcome.done:>{len(str(number))}}/{number}  {_line(point, row)}"
            say(f"{told}  | {min(left, places)} running, {outcome.failed} failed, about {rest} left")
    except KeyboardInterrupt:
        client.cancel([*names, *asked])
        raise


def _measure(_ready: float | None, point: Asked, data: str, threads: int, code: str) -> Any:
    """A point's row and files, once its model is there."""
    return point.measure(data, threads, code)


def _result(future: Future, point: Asked) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The row and files of a point that ended, however it did."""
    if future.status == "finished":
        return future.result()
    error: Any = future.exception() if future.status == "error" else RuntimeError("cancelled by the scheduler")
    return point.columns() | {"error": last_line(error)}, {}


def _line(point: Asked, row: dict[str, Any]) -> str:
    """A row in a line's width."""
    if row["error"]:
        return f"{point.name:<48} {row['error']}"
    numbers = f"ACC {row['acc_after']:5.1f} ASR {row['asr_after']:5.1f} " if "acc_after" in row else ""
    return f"{point.name:<48} {numbers}{duration(row['wall']):>10}"
