"""A notebook's parameters cell: read as literals, and held against what is allowed when the notebook runs. No torch."""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from nbtools.lab.parameters import check_parameters
from nbtools.values import fit, infinite, said, storable, too_large, type_of
from nbtools.wording import WrongParameter, known

INJECTED = "# Parameters\n"
"""What the cell begins with into which papermill writes the values that it was given."""


@dataclass(frozen=True)
class Parameter:
    """One line of a notebook's parameters cell: name, default (a literal) and the comment behind it ("" if none)."""

    name: str
    default: Any
    comment: str


def read_cell(text: str, stem: str) -> dict[str, Parameter]:
    """The parameters that a cell declares, by name, in order.

    Args:
        text: the cell.
        stem: of the notebook, for messages.

    Raises:
        ValueError: where the cell holds anything but `name = literal` lines.
    """
    try:
        statements = ast.parse(text).body
    except SyntaxError as error:
        raise ValueError(f"{stem}: the parameters cell is not Python: {error.msg}, line {error.lineno}.") from None
    comments = {
        token.start[0]: token.string.lstrip("# ")
        for token in tokenize.generate_tokens(io.StringIO(text).readline)
        if token.type == tokenize.COMMENT
    }
    found = {}
    for statement in statements:
        try:
            name, value = _assignment(statement)
        except ValueError:
            line = ast.unparse(statement)
            raise ValueError(f"{stem}: the parameters cell may hold only `name = literal`, not `{line}`.") from None
        found[name] = Parameter(name, value, comments.get(statement.end_lineno or statement.lineno, ""))
    return found


def _assignment(statement: ast.stmt) -> tuple[str, Any]:
    """Name and value of `name = literal` or `name: type = literal`; raises ValueError for anything else."""
    match statement:
        case ast.Assign(targets=[ast.Name(id=name)], value=value):
            return name, ast.literal_eval(value)
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
            return name, ast.literal_eval(value)
    raise ValueError


def typed(value: Any, parameter: Parameter, stem: str, text: str = "") -> Any:
    """A value as the type of a parameter's default.

    Args:
        value: any.
        parameter: whose it shall be.
        stem: of the notebook, for the message.
        text: the value as it was typed, for the message.

    Raises:
        ValueError: with what is wanted, where it is of another type, or nothing that a notebook's file holds.
    """
    wanted = type_of(parameter.default)
    try:
        found = fit(value, wanted)
        if not storable(found):
            raise TypeError
        return found
    except TypeError:
        comment = f" ({parameter.comment})" if parameter.comment else ""
        kind = "None" if value is None else said(type_of(value))
        if too_large(value):
            kind = "too large: a whole number has at most 63 bits"
        elif infinite(value) and wanted is not str:
            kind = "not a finite number" if isinstance(value, float | str) else "not of finite numbers alone"
        elif not storable(value):
            kind = "nothing that a notebook's file can hold"
        raise ValueError(
            f"The parameter {parameter.name} takes {said(wanted)}, and {text or value!r} is {kind}. "
            f"In {stem} it is {parameter.name} = {parameter.default!r}{comment}."
        ) from None


def check_notebook() -> None:
    """Hold the parameters of the notebook that is running in this process, if one is, against what is allowed.

    Raises:
        WrongParameter: with what there is, and where to change it.
    """
    IPython = sys.modules.get("IPython")
    shell = IPython.get_ipython() if IPython else None
    if shell is not None:
        check_cells(shell.user_ns.get("In", []))


def check_cells(executed: Iterable[str]) -> None:
    """Hold a notebook's parameters against what is allowed.

    Args:
        executed: the cells that were executed, in order. The last that assigns nothing but literals, `profile` among
            them, is the parameters cell; what papermill was given stands in a cell behind it.

    Raises:
        WrongParameter: for a value that is not allowed, or a name that papermill was given and the notebook lacks.
    """
    declared: dict[str, Parameter] = {}
    given: dict[str, Parameter] = {}
    for text in executed:
        injected = text.startswith(INJECTED)
        try:
            found = read_cell(text, "this notebook")
        except (ValueError, tokenize.TokenError) as error:
            if injected and any(line.split(" = ")[0] in declared for line in text.splitlines()):  # as float("inf")
                raise _refused(str(error), given=True) from None
            continue
        if injected:
            given = found
        elif len(found) > 1 and "profile" in found:
            declared, given = found, {}
    if not declared:
        return
    try:
        for name, parameter in given.items():
            if name not in declared:
                raise ValueError(known("parameter", name, declared))
            typed(parameter.default, declared[name], "this notebook")
        check_parameters({name: (given.get(name) or cell).default for name, cell in declared.items()})
    except ValueError as error:
        raise _refused(str(error), bool(given)) from None


def _refused(error: str, given: bool) -> WrongParameter:
    """What is wrong, and where to change it: in what papermill was given, or in the notebook."""
    where = "It stands in the parameters cell, the one with the profile: change it there and run all cells again."
    where = "papermill was given this value: give it another one." if given else where
    return WrongParameter(error, where, "Nothing was computed yet.")
