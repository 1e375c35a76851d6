"""No defence can reach a trigger or the test set: proved from imports, from signatures, and by taking both away."""

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from nbtools import defences
from nbtools.defences import Repair

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "nbtools"
FORBIDDEN = {f"nbtools.{name}" for name in ("datasets", "triggers", "poisoning", "evaluation", "experiments")}
"""What holds triggers, poisoned images or the test set, or hands them out."""
SECRET = ("trigger", "target", "poison", "attack", "test", "evaluat")
"""No argument and no field of a defence may be named so."""
SOURCES = sorted((PACKAGE / "defences").glob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def file_of(module: str) -> Path | None:
    """The source of one of the package's modules, None for any other name."""
    path = ROOT.joinpath(*module.split("."))
    return next((p for p in (path.with_suffix(".py"), path / "__init__.py") if p.is_file()), None)


def imports(path: Path) -> Iterator[str]:
    """Every name that a file imports, wherever in the file: at the top, in a function, behind a condition."""
    package = name_of(path).split(".") if path.name == "__init__.py" else name_of(path).split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def closure(sources: list[Path]) -> dict[str, Path]:
    """The package's modules that the sources import, directly or through each other: name to file."""
    found: dict[str, Path] = {}
    queue = list(sources)
    while queue:
        path = queue.pop()
        if found.setdefault(name_of(path), path) is path:
            queue += [file for name in imports(path) if (file := file_of(name)) and name_of(file) not in found]
    # The package's own __init__ runs on every import, but what it imports when asked for "start" does not.
    found.pop("nbtools", None)
    return found


def test_nothing_that_a_defence_imports_imports_a_trigger_or_the_test_set() -> None:
    reached = closure(SOURCES)
    assert {"nbtools.defences.suspiciousness", "nbtools.scores", "nbtools.models", "nbtools.images"} <= set(reached)
    assert not FORBIDDEN & set(reached)


def test_the_search_finds_what_it_must_find() -> None:
    """Imports inside functions, and modules reached through others, are seen."""
    assert "nbtools.experiments" in set(imports(PACKAGE / "__init__.py")), "it stands in a function there"
    assert set(closure([PACKAGE / "experiments.py"])) >= FORBIDDEN


def test_no_import_is_hidden_from_the_search() -> None:
    """No import by a string, and no way round through the package's own `start`."""
    for path in closure(SOURCES).values():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        assert not names & {"__import__", "importlib", "exec", "eval", "compile", "globals"}, path.name
        asked = set(imports(path))
        assert not asked & {"importlib", "runpy", "pkgutil", "nbtools.start"}, path.name
        assert not any(isinstance(n, ast.Import) and "nbtools" in {a.name for a in n.names} for n in ast.walk(tree))
    top = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")).body
    modules = {node.module for node in top if isinstance(node, ast.ImportFrom)}
    assert modules <= {"importlib.metadata"} and not any(isinstance(node, ast.Import) for node in top)


def public() -> list[type]:
    """The defences: what the package offers that turns a call into a `Repair`."""
    offered: list[type] = [getattr(defences, name) for name in defences.__all__]
    return [kind for kind in offered if is_dataclass(kind) and call_of(kind).return_annotation == "Repair"]


def call_of(kind: type) -> inspect.Signature:
    return inspect.signature(vars(kind).get("__call__", lambda: None))


def test_the_defences_are_known() -> None:
    rivals = {"FMP", "MNP", "NAD", "ANP", "AWM", "RNP", "FinePruning", "FineTuning"}
    assert {kind.__name__ for kind in public()} == {
        "Suspiciousness",
        "ChosenMu",
        "SpectralNorm",
        "RandomPruning",
    } | rivals


@pytest.mark.parametrize("defence", public())
def test_a_defence_is_called_with_a_model_and_clean_images_and_nothing_else(defence: type) -> None:
    parameters = dict(call_of(defence).parameters)
    del parameters["self"]
    assert {name: p.annotation for name, p in parameters.items()} == {"model": "nn.Module", "clean": "Images"}
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty for p in parameters.values())


def test_nothing_in_the_defences_is_given_a_secret_by_name() -> None:
    given = {field.name for kind in [*public(), Repair, defences.FineTune] for field in fields(kind)}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.arg):
                given.add(node.arg)
            elif isinstance(node, ast.ClassDef):
                given |= {ast.unparse(line.target) for line in node.body if isinstance(line, ast.AnnAssign)}
    assert {"mu", "clean", "frozen_bn"} <= given
    assert [name for name in sorted(given) if any(word in name.lower() for word in SECRET)] == []


WITHOUT = f"""
import sys
import nbtools.defences

assert not {FORBIDDEN!r} & set(sys.modules), "importing the defences imports too much"
sys.modules.update(dict.fromkeys({FORBIDDEN!r}))  # None: from here on an import of them raises
sys.path.insert(0, {str(Path(__file__).parent)!r})

from tiny import pictures, plain
from nbtools.defences import *

tune = FineTune(steps=2, every=1, folds=2)
first = Suspiciousness(mu=1, fine_tune=tune)
epoch = Epochs(epochs=1, batch_size=4)
rivals = [FMP(n_images=4, divisor=4, fine_tune=epoch), MNP(unlearn_epochs=1, recover_epochs=2)]
rivals += [RNP(unlearn_epochs=1, recover_epochs=2), ANP(iterations=3), AWM(rounds=1, passes=1)]
rivals += [NAD(epoch, epoch, (1, 1), ("conv1", "conv2")), FinePruning(fine_tune=epoch), FineTuning(epoch)]
for defence in (first, ChosenMu(first), SpectralNorm(mu=1, fine_tune=tune), RandomPruning(first), *rivals):
    print(type(defence).__name__, defence(plain(), pictures(8)).mask.count)
"""


def test_the_defences_work_where_triggers_and_test_set_do_not_exist() -> None:
    child = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False, cwd=ROOT)
    assert child.returncode == 0, child.stderr
    assert [line.split()[0] for line in child.stdout.splitlines()] == [
        "Suspiciousness",
        "ChosenMu",
        "SpectralNorm",
        "RandomPruning",
        *["FMP", "MNP", "RNP", "ANP", "AWM", "NAD", "FinePruning", "FineTuning"],
    ]
