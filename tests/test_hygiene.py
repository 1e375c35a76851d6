"""What is committed is fit to be read: no traces of a machine, notebooks equal to their scripts, lists that agree."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from papermill.translators import PythonTranslator

from nbtools.series import notebooks
from nbtools.series.arguments import parameters_of

ROOT = Path(__file__).parent.parent
SOURCES = notebooks.find_sources(ROOT / "notebooks" / "src")
COMMITTED = [source for source in SOURCES if notebooks.committed_path(source).is_file()]
each_source = pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.stem)
each_committed = pytest.mark.parametrize("source", COMMITTED, ids=lambda source: source.stem)


def tracked_names() -> list[str]:
    """Every file that is in git or would be added."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [name for name in listed.stdout.split("\0") if name]


def tracked_files() -> list[Path]:
    """The text files among them, the licence and the pins left out."""
    paths = [ROOT / name for name in tracked_names() if name not in {"LICENSE", "constraints.txt"}]
    return [path for path in paths if path.is_file() and b"\0" not in path.read_bytes()[:8192]]


def test_no_traces_of_a_machine() -> None:
    # Written in pieces so that this file does not find itself.
    patterns = [
        r"/(?:root|home/\w+|Users/\w+)/",
        r"[A-Z]:\\+Users\\",
        "Traceback " + r"\(most recent call",
        re.escape(f"{ROOT}/"),
    ]
    found = []
    for path in tracked_files():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
            found += [f"{path.relative_to(ROOT)}:{number}: {hit[0]}" for p in patterns if (hit := re.search(p, line))]
    assert not found, "\n".join(found)


def test_the_top_level_holds_nothing_that_does_not_belong_there() -> None:
    folders = {".ci", ".github", "book", "data", "findings", "nbtools", "notebooks", "tests"}
    files = {".gitignore", "CHANGELOG.md", "CITATION.cff", "LICENSE", "Makefile", "README.md"}
    files |= {".dockerignore", "Dockerfile", "constraints.txt", "environment.yml", "pyproject.toml"}
    assert {name.split("/")[0] for name in tracked_names()} <= folders | files


def test_modules_are_small() -> None:
    lengths = {path.name: len(path.read_text().splitlines()) for path in (ROOT / "nbtools").rglob("*.py")}
    assert {name: lines for name, lines in lengths.items() if lines >= 300} == {}


def test_conda_environment_equals_pyproject() -> None:
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    text = (ROOT / "environment.yml").read_text()
    block = text[text.index("- pip:") :]
    assert re.findall(r'^      - "(.+)"$', block, re.MULTILINE) == wanted["dependencies"]
    assert f"\n  - python{wanted['requires-python'].replace('>=', '=')}\n" in text


def imported(folder: Path) -> set[str]:
    """The packages that the Python files of a folder import, our own and Python's aside."""
    own = {"nbtools", *(path.stem for path in (ROOT / "tests").rglob("*.py"))}
    names: set[str] = set()
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [part.name for part in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names |= {module.partition(".")[0] for module in modules}
    return names - own - sys.stdlib_module_names


NAMED_OTHERWISE = {"PIL": "pillow", "bs4": "beautifulsoup4", "yaml": "pyyaml"}


@pytest.mark.parametrize(
    ("folder", "extras"),
    [("nbtools", ["onnx", "timm"]), ("notebooks/src", []), ("book", ["book"]), ("tests", ["dev", "onnx", "timm"])],
)
def test_what_is_imported_is_required_with_its_lowest_version(folder: str, extras: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    needed = [] if folder == "book" else project["dependencies"]  # the book is built without nbtools
    needed = needed + [text for extra in extras for text in project["optional-dependencies"][extra]]
    there = {re.split("[<>=!]", text)[0] for text in needed if ">=" in text}
    names = {NAMED_OTHERWISE.get(name, name.lower().replace("_", "-")) for name in imported(ROOT / folder)}
    assert names <= there


def test_constraints_pin_every_direct_requirement() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines), "a constraint is a name and a version"
    pinned = {line.split("==")[0] for line in lines}
    needed = project["dependencies"] + [text for extra in project["optional-dependencies"].values() for text in extra]
    assert {re.split("[<>=!]", text)[0] for text in needed if not text.startswith("nbtools[")} <= pinned


REFUSED = (
    "01 -p poison_rte 0.1",
    "01 -p poison_rate 2",
    "01 -p attack badnet",
    "01 -p seed high",
    "77",
    "--profile lap",
    "-p mu -1",
)


DEFEND = "defend --model m.pt --images i --out o.pt"
ELSEWHERE = (
    "run --profile laptop",
    "sweep nowhere.yaml",
    f"{DEFEND} --arch resnet18 --defence clip",
    f"{DEFEND} --arch resnet81",
    "address nowhere",
)


@pytest.mark.parametrize("words", ["--help", "run --help", *(f"run {words}" for words in REFUSED), *ELSEWHERE])
def test_help_and_refusals_import_nothing_heavy(words: str) -> None:
    code = (
        "import sys\nfrom nbtools.__main__ import main\nfrom nbtools.data import places\n"
        "places.data_places = lambda data=None: []\ntry:\n    main(sys.argv[1:])\nexcept SystemExit as end:\n"
        "    print(end.code, sorted({'torch', 'numpy', 'papermill', 'nbformat', 'dask'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, *words.split()]
    child = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    assert child.stdout.splitlines()[-1] == f"{0 if 'help' in words else 2} []", child.stdout + child.stderr


@each_source
def test_parameters_are_literals_with_a_comment(source: Path) -> None:
    script = notebooks.read_script(source)
    declared = parameters_of(source)
    assert declared, "a notebook has a cell tagged parameters"
    assert [name for name, parameter in declared.items() if not parameter.comment] == []
    (cell,) = [cell for cell in script.cells if "parameters" in cell.metadata.get("tags", [])]
    assert not any(line.startswith("# %%") for line in cell.source.splitlines())
    seen = [parameter.name for parameter in PythonTranslator.inspect(cell)]
    assert seen == list(declared), "papermill overlooks a parameter whose comment has an equals sign"


@each_source
def test_script_has_no_cell_that_a_run_adds(source: Path) -> None:
    tags = {tag for cell in notebooks.read_script(source).cells for tag in cell.metadata.get("tags", [])}
    assert not tags & notebooks.ADDED_TAGS


def test_every_script_has_its_pair_and_every_pair_its_script() -> None:
    stems = {path.stem for path in (ROOT / "notebooks").glob("*.ipynb")}
    assert stems == {source.stem for source in SOURCES}


@each_committed
def test_notebook_equals_its_script(source: Path) -> None:
    assert notebooks.check_committed(source.stem, source.parent) == []


@each_committed
def test_committed_output_is_clean(source: Path) -> None:
    notebook = json.loads(notebooks.committed_path(source).read_text(encoding="utf-8"))
    assert set(notebook["metadata"]) == {"kernelspec", "language_info", "nbtools"}
    assert not any("injected-parameters" in cell["metadata"].get("tags", []) for cell in notebook["cells"])
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert [output["ename"] for output in outputs if output["output_type"] == "error"] == []
    assert not any("widget" in kind for output in outputs for kind in output.get("data", {}))


@each_committed
def test_a_page_is_small(source: Path) -> None:
    most = 520 if source.stem == "10_comparison" else 480  # 10: four tables of fifteen defences and seven models
    assert notebooks.committed_path(source).stat().st_size <= most * 1024


def test_nothing_large_is_committed_but_models() -> None:
    large = {name for name in tracked_names() if (ROOT / name).is_file() and (ROOT / name).stat().st_size > 2**20}
    assert {name for name in large if not name.startswith("data/models/")} == set()


@each_committed
def test_stamp_is_complete(source: Path) -> None:
    stamp = json.loads(notebooks.committed_path(source).read_text(encoding="utf-8"))["metadata"]["nbtools"]
    assert set(stamp) == {"profile", "parameters", "sha256", "seconds", "hardware", "versions", "date"}
    assert set(stamp["parameters"]) == set(parameters_of(source))
