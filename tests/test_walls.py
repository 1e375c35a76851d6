"""The walls of the house, read from the imports: who may know whom, and that no defence can reach a trigger.

`python tests/test_walls.py` lists the house: its rooms, the arrows between them, and circles; a path of another
checkout after it lists that one's.
"""

import ast
import graphlib
import inspect
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from nbtools import defender
from nbtools.defender import Repair

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "nbtools"
MAY_IMPORT = {
    # Common ground, which everyone stands on.
    "wording": set(),
    "settings": set(),
    "values": set(),
    "data": {"settings", "wording"},
    "networks": {"data", "settings"},
    # The three parties do not see each other's cards; only the evaluator holds the trigger as well.
    "attacker": {"networks", "data", "settings", "values", "wording"},
    "defender": {"networks", "data", "settings", "values", "wording"},
    "evaluator": {"attacker", "networks", "data", "settings"},
    # The laboratory is the only place where all three meet.
    "lab": {"attacker", "defender", "evaluator", "networks", "data", "settings", "values", "wording"},
    # What stands on top: the notebooks; and the repair of somebody's own model, which knows no attacker.
    "series": {"lab", "attacker", "defender", "evaluator", "networks", "data", "settings", "values", "wording"},
    "defend": {"defender", "evaluator", "networks", "data", "settings", "values", "wording"},
}
SECRET = ("trigger", "target", "poison", "attack", "test", "evaluat")
"""No argument and no field of a defence may be named so."""
SOURCES = sorted((PACKAGE / "defender").glob("*.py"))


def modules_of(root: Path) -> dict[str, Path]:
    """The modules of a checkout's package: name to file."""
    found = {}
    for path in sorted((root / "nbtools").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules_of(ROOT)


def imports(path: Path, modules: Mapping[str, Path] = MODULES) -> set[str]:
    """The package's modules that a file imports, wherever in it: at its top, in a function, behind a condition."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: imports are written in full"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in modules else str(node.module) for name in names}
    return {name for name in found if name in modules}


def room(module: str) -> str:
    """Of a module's name the wing, or the file that lies at the top."""
    return module.split(".")[1]


def test_nobody_imports_who_is_behind_a_wall() -> None:
    inside = {module for module in MODULES if module not in ("nbtools", "nbtools.__main__")}
    arrows = {(room(module), room(known)) for module in inside for known in imports(MODULES[module]) - {"nbtools"}}
    assert {room(module) for module in inside} == set(MAY_IMPORT)
    assert sorted((a, b) for a, b in arrows if a != b and b not in MAY_IMPORT[a]) == []


def test_there_is_no_circle_of_imports() -> None:
    order = graphlib.TopologicalSorter({module: imports(path) - {module} for module, path in MODULES.items()})
    assert list(order.static_order())[-1] == "nbtools.__main__"


def test_the_search_finds_what_it_must_find() -> None:
    """Imports inside functions are seen, and those of a module's own name behind `from package import`."""
    assert "nbtools.lab.experiments" in imports(PACKAGE / "__init__.py"), "it stands in a function there"
    assert "nbtools.lab.experiments" in imports(PACKAGE / "lab" / "points.py")
    assert "nbtools.data.datasets" in imports(PACKAGE / "lab" / "experiments.py")


def test_no_import_is_hidden_from_the_search() -> None:
    """No import by a string, and no way round through the package's own `start`."""
    for name in ("data", "networks", "defender"):
        for path in (PACKAGE / name).glob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            called = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            assert not called & {"__import__", "importlib", "exec", "eval", "compile", "globals"}, path.name
            asked = {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
            asked |= {f"{n.module}.{a.name}" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) for a in n.names}
            assert not {part for full in asked for part in full.split(".")} & {"importlib", "runpy", "pkgutil"}
            assert not asked & {"nbtools", "nbtools.start"}, path.name


def public() -> list[type]:
    """The defences: what the wing offers that turns a call into a `Repair`."""
    offered: list[type] = [getattr(defender, name) for name in defender.__all__]
    return [kind for kind in offered if is_dataclass(kind) and call_of(kind).return_annotation == "Repair"]


def call_of(kind: type) -> inspect.Signature:
    return inspect.signature(vars(kind).get("__call__", lambda: None))


def test_the_defences_are_known() -> None:
    pruning = {"Suspiciousness", "ChosenMu", "SpectralNorm", "RandomPruning"}
    rivals = {"FMP", "MNP", "NAD", "ANP", "AWM", "RNP", "FinePruning", "FineTuning"}
    newer, ours = {"D3", "FTSAM", "LMR", "NFT"}, {"ShiftUnlearning"}
    assert {kind.__name__ for kind in public()} == pruning | rivals | newer | ours


@pytest.mark.parametrize("defence", public())
def test_a_defence_is_called_with_a_model_and_clean_images_and_nothing_else(defence: type) -> None:
    parameters = dict(call_of(defence).parameters)
    del parameters["self"]
    assert {name: p.annotation for name, p in parameters.items()} == {"model": "nn.Module", "clean": "Images"}
    assert all(p.kind is p.POSITIONAL_OR_KEYWORD and p.default is p.empty for p in parameters.values())


def test_nothing_in_the_wing_is_given_a_secret_by_name() -> None:
    given = {field.name for kind in [*public(), Repair, defender.FineTune] for field in fields(kind)}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.arg):
                given.add(node.arg)
            elif isinstance(node, ast.ClassDef):
                given |= {ast.unparse(line.target) for line in node.body if isinstance(line, ast.AnnAssign)}
    assert {"mu", "clean", "frozen_bn"} <= given
    assert [name for name in sorted(given) if any(word in name.lower() for word in SECRET)] == []


FORBIDDEN = sorted(name for name in MODULES if name.count(".") > 1 and room(name) in ("attacker", "evaluator", "lab"))
WITHOUT = f"""
import sys
import nbtools.defender

assert not set({FORBIDDEN!r}) & set(sys.modules), "importing the defences imports too much"
sys.modules.update(dict.fromkeys({FORBIDDEN!r}))  # None: from here on an import of them raises
sys.path.insert(0, {str(Path(__file__).parent)!r})

from tiny import pictures, plain
from nbtools.defender import *

tune = FineTune(steps=2, every=1, folds=2)
first = Suspiciousness(mu=1, fine_tune=tune)
epoch = Epochs(epochs=1, batch_size=4)
rivals = [FMP(n_images=4, divisor=4, fine_tune=epoch), MNP(unlearn_epochs=1, recover_epochs=2)]
rivals += [RNP(unlearn_epochs=1, recover_epochs=2), ANP(iterations=3), AWM(rounds=1, passes=1)]
rivals += [NAD(epoch, epoch, (1, 1), ("conv1", "conv2")), FinePruning(fine_tune=epoch), FineTuning(epoch)]
rivals += [D3(tune=epoch), FTSAM(tune=epoch), LMR(ascent_epochs=1, epochs=1), NFT(epochs=1)]
rivals += [ShiftUnlearning(pruned=(), places=("", "bn1"), level=1.0, steps=1)]
for defence in (first, ChosenMu(first), SpectralNorm(mu=1, fine_tune=tune), RandomPruning(first), *rivals):
    print(type(defence).__name__, defence(plain(), pictures(8)).mask.count)
"""


def test_the_defences_work_where_triggers_and_test_set_do_not_exist() -> None:
    child = subprocess.run([sys.executable, "-c", WITHOUT], capture_output=True, text=True, check=False, cwd=ROOT)
    assert child.returncode == 0, child.stderr
    assert {line.split()[0] for line in child.stdout.splitlines()} == {kind.__name__ for kind in public()}


def listed(root: Path) -> str:
    """The house of a checkout as lines: rooms with their files and lines, arrows with their number, a circle if any."""
    modules = modules_of(root)
    graph = {module: imports(path, modules) - {module} for module, path in modules.items()}
    inside = {module for module in modules if module.count(".")}
    lengths = Counter[str]()
    for module in inside:
        lengths[room(module)] += len(modules[module].read_text(encoding="utf-8").splitlines())
    arrows = Counter((room(a), room(b)) for a in inside for b in graph[a] & inside if room(a) != room(b))
    lines = [f"{len(modules)} files, {sum(lengths.values())} lines, {len(lengths)} rooms"]
    for name in sorted(lengths):
        to = ", ".join(f"{b} {count}" for (a, b), count in sorted(arrows.items()) if a == name)
        lines.append(f"{name:<14} {lengths[name]:>5} lines  -> {to or 'nobody'}")
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return "\n".join([*lines, f"a circle: {' -> '.join(error.args[1])}"])
    return "\n".join([*lines, "no circle"])


def test_the_house_can_be_listed() -> None:
    assert listed(ROOT).endswith("no circle") and "\ndefender " in listed(ROOT)


if __name__ == "__main__":
    print(listed(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT))
