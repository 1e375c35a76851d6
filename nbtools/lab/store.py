"""A sweep's folder: a file for each row, none of them ever half-written, and the table of all [ours]."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import pandas as pd
from filelock import FileLock, Timeout


class Asked(Protocol):
    """A point of a grid, as a sweep sees it; it travels to a worker by pickle."""

    @property
    def id(self) -> str:
        """What its row is known by."""
        ...

    @property
    def name(self) -> str:
        """For lines."""
        ...

    @property
    def model(self) -> Any:
        """The model that has to be there first, an `nbtools.lab.points.Model`, or None."""
        ...

    @property
    def dataset(self) -> str:
        """The name of its images' set."""
        ...

    def columns(self) -> dict[str, Any]:
        """What was asked."""
        ...

    def measure(self, data: str, threads: int, code: str) -> tuple[dict[str, Any], dict[str, bytes]]:
        """The row, in which `error` is "" if all is well, and files that belong to it."""
        ...


@dataclass(frozen=True)
class Grid:
    """The points of a file, each once, and the text that they were read from."""

    points: Sequence[Asked]
    text: str


class Store:
    """A sweep's folder.

    grid.yaml               the grid, as it was last asked for
    rows/<point>.json       a row, as soon as it is there
    rows.csv                the grid's rows in the grid's order; enough to go on from
    table.csv               the same to work with, see `tidy`
    notebooks/<point>/      of a sweep of notebooks: what each run left
    <table>.csv             the tables that the runs saved, one under the other, with the parameters as p_<name>
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._table: dict[str, dict[str, Any]] | None = None

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """The folder for ourselves; a ValueError where another sweep is at it."""
        (self.folder / "rows").mkdir(parents=True, exist_ok=True)
        try:
            with FileLock(self.folder / ".lock", blocking=False):
                yield
        except Timeout:
            raise ValueError(f"another sweep writes to {self.folder}: wait for it, or give another --out") from None

    def read(self, point: Asked) -> dict[str, Any] | None:
        """A point's row, or None; where its file is gone or damaged, that of the table."""
        try:
            row = json.loads(self._file(point).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            row = None
        return row if isinstance(row, dict) and "error" in row else self._in_table(point)

    def _in_table(self, point: Asked) -> dict[str, Any] | None:
        if self._table is None:
            try:
                kept: Any = pd.read_csv(self.folder / "rows.csv", keep_default_na=False, na_values={})
                self._table = {row["id"]: row for row in kept.to_dict("records") if "error" in row}
            except (OSError, ValueError, KeyError):
                self._table = {}
        return self._table.get(point.id)

    def lacks(self, point: Asked, retry: bool) -> bool:
        """Whether a point is still to be measured."""
        row = self.read(point)
        return row is None or (retry and bool(row["error"]))

    def keep(self, point: Asked, row: dict[str, Any], files: dict[str, bytes] | None = None) -> None:
        """Write a row, and before it the files that belong to it."""
        for name, content in (files or {}).items():
            place = self.folder / "notebooks" / point.id / name
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(content)
        path = self._file(point)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(row, indent=1), encoding="utf-8")
        partial.replace(path)

    def collect(self, wanted: Sequence[Asked]) -> None:
        """Write the table of these points' rows, and one of each table that notebooks left."""
        rows, tables = [], {}
        for point in wanted:
            row = self.read(point)
            if row is None:
                continue
            rows.append(row)
            for path in sorted((self.folder / "notebooks" / point.id).glob("*.csv")):
                asked = {f"p_{name}": str(value) for name, value in dict(getattr(point, "values", ())).items()}
                tables.setdefault(path.name, []).append(pd.read_csv(path).assign(**asked))
        tables = {name: pd.concat(parts) for name, parts in tables.items()}
        every = pd.DataFrame(rows)
        if "settings" in every:
            tables["table.csv"] = tidy(every)
        for name, table in {**tables, "rows.csv": every}.items():
            partial = self.folder / f"{name}.partial"
            table.to_csv(partial, index=False)
            partial.replace(self.folder / name)

    def _file(self, point: Asked) -> Path:
        return self.folder / "rows" / f"{point.id}.json"


def tidy(rows: pd.DataFrame) -> pd.DataFrame:
    """A sweep's rows to work with: each setting that differs is a column of its own, named "mu" or "fine_tune.lr".

    Differs within a kind of defence, that is; where a row has a column of that name, it is "defence.seed". What is left
    out: columns that are empty in all rows, and those that only the sweep needs.

    Args:
        rows: with the column `settings`, the defences' `repr`.
    """
    kept: Any = rows
    found: Any = pd.DataFrame([_flat(ast.parse(text, mode="eval").body) for text in kept["settings"]], index=rows.index)
    differ = [name for name in found if name and found.groupby("")[name].nunique().max() > 1]
    settings = found[differ].rename(columns={name: f"defence.{name}" for name in differ if name in kept})
    own = {"id", "settings", "wall"} | {name for name in kept if kept[name].isin(["", None]).all()}
    return kept[[name for name in kept if name not in own]].join(settings)


def _flat(call: ast.expr, path: str = "") -> dict[str, Any]:
    """The arguments of a call and of the calls among them: "" and "fine_tune" are whose, "fine_tune.lr" is a value."""
    if not isinstance(call, ast.Call):
        if isinstance(call, ast.Constant) and isinstance(call.value, int | float | str):
            return {path: call.value}
        return {path: ast.unparse(call)}
    flat = {path: ast.unparse(call.func)}
    for argument in call.keywords:
        flat |= _flat(argument.value, f"{path}.{argument.arg}" if path else str(argument.arg))
    return flat
