"""The runner: what it refuses and how it says so, and what it leaves behind when a run does not end well."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner, Result

from nbtools.__main__ import _settle_folders, main
from nbtools.series import notebooks, stamp
from nbtools.series.run import known_seconds, new_folder, time_left
from nbtools.values import fit, parse, type_of
from nbtools.wording import duration

FIRST = """# %% [markdown]
# # 00 · First
#
# At $\\mu$ and above.

# %% tags=["parameters"]
profile = "quick"  # scale
attack = "badnets"  # name of the attack
mu = 3.0  # standard deviations above the mean
counts = (1, 2)  # images a class

# %%
import os
from pathlib import Path

print(profile, mu, counts)
_ = (Path(os.environ["NBTOOLS_OUT"]) / "00_first.csv").write_text("mu\\n3\\n")

# %% tags=["solution", "hide-input"]
print("the answer is", 6 * 7)

# %% tags=["check", "remove-cell"]
print("nobody reads this")
"""
SECOND = """# %% tags=["parameters"]
profile = "quick"  # scale
seed = 0  # 0 or more
fail = False  # stop in the last cell
wait = 0.0  # seconds

# %%
import sys
import time
import warnings
from pathlib import Path

print(sys.executable, Path.cwd())
warnings.warn("look", stacklevel=1)

# %%
time.sleep(wait)

# %%
if fail:
    raise ValueError("first line\\nmu is wrong")
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with two tiny notebooks, which the runner takes for the series."""
    sources = tmp_path / "notebooks" / "src"
    sources.mkdir(parents=True)
    (sources / "00_first.py").write_text(FIRST)
    (sources / "01_second.py").write_text(SECOND)
    (sources / "helper.py").write_text("raise SystemExit")
    monkeypatch.setenv("NBTOOLS_NOTEBOOKS", str(sources))
    return tmp_path


@pytest.fixture
def one_lane(monkeypatch: pytest.MonkeyPatch) -> None:
    """One notebook at a time, however many cores there are."""
    monkeypatch.setattr("nbtools.series.run.lanes", lambda _profile: 1)


def run(*words: str) -> Result:
    """Call `python -m nbtools run` in this process."""
    return CliRunner().invoke(main, ["run", *words])


REFUSALS = {
    "unknown number": (["7"], "There is no notebook '7'. Known: 00_first, 01_second."),
    "unknown notebook": (["00_frist"], "There is no notebook '00_frist'. Did you mean 00_first?"),
    "unknown profile": (
        ["--profile", "lapto"],
        "There is no profile 'lapto'. Did you mean laptop? Known: quick, laptop",
    ),
    "unknown parameter": (
        ["-p", "muu", "2"],
        "There is no parameter 'muu'. Did you mean mu? Known: attack, mu, counts, seed",
    ),
    "parameter of another": (["01", "-p", "mu", "2"], "There is no parameter 'mu'. Known: seed, fail, wait."),
    "text for a number": (
        ["-p", "mu", "big"],
        "mu takes float, and 'big' is str. In 00_first it is mu = 3.0 (standard",
    ),
    "bool for a number": (["-p", "mu", "True"], "mu takes float, and 'True' is bool."),
    "bool for an int": (["-p", "seed", "True"], "seed takes int, and 'True' is bool."),
    "float for an int": (["-p", "seed", "1.5"], "seed takes int, and '1.5' is float."),
    "number for a text": (["-p", "attack", "3"], "attack takes str, and '3' is int."),
    "one for many": (["-p", "counts", "5"], "counts takes tuple of int, and '5' is int."),
    "mixed elements": (
        ["-p", "counts", "[1, 'a']"],
        "counts takes tuple of int, and \"[1, 'a']\" is list of int or str.",
    ),
    "out of range": (["-p", "mu", "-1"], "00_first: mu=-1.0 is out of range: 0 to 1000"),
    "unknown attack": (
        ["-p", "attack", "badnet"],
        "00_first: There is no attack 'badnet'. Did you mean badnets",
    ),
    "given twice": (["-p", "mu", "1", "-p", "mu", "2"], "The parameter mu is given twice."),
    "profile as parameter": (["-p", "profile", "laptop"], "The profile is set by --profile, not by -p profile."),
    "no such folder of models": (["--models", "nowhere"], "Directory 'nowhere' does not exist."),
    "no such data folder": (["--data", "nowhere"], "Directory 'nowhere' does not exist."),
    "a value is missing": (["-p", "mu"], "Option '-p' requires 2 arguments."),
}


@pytest.mark.parametrize(("words", "message"), REFUSALS.values(), ids=REFUSALS)
def test_refuses_before_any_work(project: Path, words: list[str], message: str) -> None:
    result = run(*words)
    assert result.exit_code == 2
    assert message in result.output
    assert not (project / "runs").exists()


def test_refuses_a_profile_whose_images_are_missing(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbtools.data.places.data_places", lambda data=None: [project])
    result = run("--profile", "laptop")
    assert result.exit_code == 2 and not (project / "runs").exists()
    for told in ("CIFAR-10 is not here.", "--profile quick", "NBTOOLS_DATA", "--data", "download=True"):
        assert told in result.output


def test_refuses_an_out_that_is_a_file(project: Path) -> None:
    (project / "file").touch()
    assert "is a file" in run("--out", str(project / "file")).output
    below = run("--out", str(project / "file" / "below"))
    assert below.exit_code == 2
    assert "Not a directory" in below.output


def test_refuses_an_empty_folder_and_a_cell_that_computes(project: Path) -> None:
    script = project / "notebooks" / "src" / "00_first.py"
    script.write_text('# %% tags=["parameters"]\nmu = 2 * 3  # computed\n')
    assert "may hold only `name = literal`, not `mu = 2 * 3`" in run().output
    script.write_text('# %% tags=["parameters"]\nmu = \n')
    assert "00_first: the parameters cell is not Python: invalid syntax, line 1" in run().output
    for path in script.parent.glob("*.py"):
        path.unlink()
    assert "There are no notebooks in" in run().output


def test_notebooks_are_named_by_stem_number_or_path(project: Path) -> None:
    folder = project / "notebooks" / "src"
    first, second = folder / "00_first.py", folder / "01_second.py"
    assert notebooks.choose([], folder) == [first, second]
    assert notebooks.choose(["01_second", "0", "01"], folder) == [second, first]
    assert notebooks.choose([str(second), "notebooks/00_first.ipynb"], folder) == [second, first]
    copy = project / "00_first.py"
    copy.write_text(FIRST)
    assert "Two notebooks of one run have the same name" in run("0", str(copy)).output


@pytest.mark.parametrize(
    ("text", "default", "value"),
    [
        ("3", 1.5, 3.0),
        ("badnets", "sig", "badnets"),
        ("'3'", "sig", "3"),
        ("(1, 2)", [0.5], [1.0, 2.0]),
        ("[]", (1,), ()),
        ("[1, 'a']", [], [1, "a"]),
        ("None", None, None),
        ("4", None, 4),
        ("{'a': 1}", {}, {"a": 1}),
    ],
)
def test_values_become_the_type_of_the_default(text: str, default: object, value: object) -> None:
    converted = fit(parse(text), type_of(default))
    assert converted == value
    assert type(converted) is type(value)


def test_a_good_run(project: Path, one_lane: None) -> None:
    result = run("-p", "mu", "2", "-p", "seed", "5", "--write")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert lines[0] == "mu is a parameter of 00_first; the others run as they are."
    assert lines[2].split()[0] == "00_first"
    assert "left" in lines[2]
    assert lines[3].split()[0] == "01_second"
    assert lines[3].endswith("ok")
    (out,) = (project / "runs" / "quick").iterdir()
    stems = ("00_first", "01_second")
    assert {path.name for path in out.iterdir()} == {*(f"{stem}.ipynb" for stem in stems), "00_first.csv"}
    assert [line.split()[0] for line in lines[4:]] == ["Executed", "Rows"]
    assert str(out / "*.csv") in lines[-1]

    for stem in stems:
        committed = project / "notebooks" / f"{stem}.ipynb"
        notebook = nbformat.read(committed, as_version=4)
        nbformat.validate(notebook)
        assert notebooks.check_committed(stem, project / "notebooks" / "src") == []
        assert notebook.cells[-1].source.startswith("*Run with profile quick")
        text = committed.read_text()
        assert "papermill" not in text
        for place in (sys.prefix, str(project), "ipykernel_", "injected-parameters"):
            assert place not in text
        counts = [cell.execution_count for cell in notebook.cells if cell.get("execution_count")]
        assert counts == list(range(1, len(counts) + 1))
    first = nbformat.read(project / "notebooks" / "00_first.ipynb", as_version=4)
    assert first.metadata.nbtools.parameters == {
        "profile": "quick",
        "attack": "badnets",
        "mu": 2.0,
        "counts": [1, 2],
    }
    assert "with profile quick, `mu = 2.0` on" in first.cells[-1].source
    assert first.cells[2].outputs[0].text == "quick 2.0 (1, 2)\n"
    kept = nbformat.read(out / "00_first.ipynb", as_version=4)
    assert ["injected-parameters"] in [cell.metadata.get("tags") for cell in kept.cells], "the run's own copy has it"

    # A second run knows how long the first took, and a script that has not changed keeps its cell ids.
    assert known_seconds(project / "notebooks" / "src" / "00_first.py", "quick") == first.metadata.nbtools.seconds
    assert known_seconds(project / "notebooks" / "src" / "00_first.py", "laptop") is None
    ids = [cell.id for cell in first.cells]
    assert run("--write").exit_code == 0
    again = nbformat.read(project / "notebooks" / "00_first.ipynb", as_version=4)
    assert [cell.id for cell in again.cells] == ids


def test_a_failing_notebook(project: Path, one_lane: None) -> None:
    out = project / "out"
    result = run("1", "0", "-p", "fail", "True", "--write", "--out", str(out))
    assert result.exit_code == 1
    assert "failed in cell 5: ValueError: mu is wrong" in result.output
    assert "Finished: none (0 of 2)." in result.output
    assert {path.name for path in out.iterdir()} == {"01_second.failed.ipynb"}
    assert not list((project / "notebooks").glob("*.ipynb"))

    result = run("1", "0", "-p", "fail", "True", "--keep-going", "--out", str(out))
    assert result.exit_code == 1
    assert "Finished: 00_first (1 of 2)." in result.output
    assert {path.name for path in out.glob("*.ipynb")} == {"00_first.ipynb", "01_second.failed.ipynb"}

    assert run("1", "--out", str(out)).exit_code == 0
    assert {path.name for path in out.glob("01*.ipynb")} == {"01_second.ipynb"}


def test_a_failure_lets_what_runs_beside_it_end(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nbtools.series.run.lanes", lambda _profile: 2)
    slow = "# %%\nimport time\ntime.sleep(10)\n"
    for stem in ("02_third", "03_fourth"):
        (project / "notebooks" / "src" / f"{stem}.py").write_text(slow)
    out = project / "out"
    result = run("1", "2", "3", "-p", "fail", "True", "--out", str(out))
    assert result.exit_code == 1
    assert "Finished: 02_third (1 of 3)." in result.output, result.output
    assert {path.name for path in out.glob("*.ipynb")} == {"01_second.failed.ipynb", "02_third.ipynb"}


def test_a_kernel_that_dies(project: Path) -> None:
    (project / "notebooks" / "src" / "02_third.py").write_text(
        "# %%\n1\n# %%\nimport os; os.kill(os.getpid(), 9)\n# %%\n2\n"
    )
    result = run("2", "--out", str(project / "out"))
    assert result.exit_code == 1
    assert "DeadKernelError" in result.output
    assert [path.name for path in (project / "out").iterdir()] == ["02_third.failed.ipynb"]


def test_a_notebook_whose_process_dies_is_named(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process that drives the kernel, that is: as when the system runs out of memory."""
    code = "# %%\nimport os\nos.kill(os.getppid(), 9)\n"
    (project / "notebooks" / "src" / "02_third.py").write_text(code)
    result = run("2", "0", "--keep-going", "--out", str(project / "out"))
    assert result.exit_code == 1
    assert "02_third" in result.output and "failed its process died: killed, or out of memory" in result.output
    assert "Finished: 00_first (1 of 2)." in result.output


def test_a_kernel_reaches_no_network(project: Path) -> None:
    code = "# %%\nimport urllib.request\nurllib.request.urlopen('http://192.0.2.1/', timeout=1)\n"
    (project / "notebooks" / "src" / "02_third.py").write_text(code)
    assert "in cell 1: URLError: <urlopen error The network is blocked in tests" in run("2").output


def test_an_interrupt_leaves_finished_work(project: Path) -> None:
    out = project / "out"
    command = [sys.executable, "-m", "nbtools", "run", "-p", "wait", "600", "--out", str(out)]
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,  # so that the interrupt can reach every process, as a terminal's does
        # a shell's background job ignores SIGINT and hands that on, also to a test run as one
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    partial = out / "01_second.partial.ipynb"
    deadline = time.monotonic() + 120
    try:
        assert child.stdout is not None
        first = next(line for line in child.stdout if line.startswith("00_first"))
        # The third cell waits; the second has warned, and the notebook is saved when the third begins.
        while not (partial.exists() and "UserWarning" in partial.read_text()):
            assert child.poll() is None, child.communicate()[0]
            assert time.monotonic() < deadline
            time.sleep(0.1)
        os.killpg(child.pid, signal.SIGINT)
        printed, _ = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == 130
    assert first.split()[-1] == "ok" or "left" in first
    assert "Interrupted. Finished: 00_first (1 of 2)." in printed
    assert "Traceback" not in printed
    assert {path.name for path in out.iterdir()} == {"00_first.ipynb", "00_first.csv", partial.name}


def test_a_script_that_changed_is_noticed(project: Path) -> None:
    folder = project / "notebooks" / "src"
    (missing,) = notebooks.check_committed("01_second", folder)
    assert "01_second.ipynb is missing" in missing
    assert run("1", "--write").exit_code == 0
    script = folder / "01_second.py"
    script.write_text(SECOND.replace("print(sys.executable, Path.cwd())", 'print("changed")'))
    differs, stale = notebooks.check_committed("01_second", folder)
    assert "cell 1 differs" in differs
    assert "hash is not that of the script" in stale
    script.write_text(SECOND + "\n# %%\n1\n")
    assert "the script has 5 cells, the notebook 4" in notebooks.check_committed("01_second", folder)[0]


PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="


def test_scrub_takes_machine_paths_and_widgets_out() -> None:
    cell = nbformat.v4.new_code_cell("x")
    cell.outputs = [
        nbformat.v4.new_output(
            "stream", text="/somewhere/me/data/x.png /somewhere/me /somewhere/mean /tmp/ipykernel_1/22.py:3"
        ),
        nbformat.v4.new_output("display_data", data={"text/html": "<a href='/somewhere/me/x'>", "image/png": PIXEL}),
        nbformat.v4.new_output("display_data", data={stamp.WIDGET_VIEW: {}, "text/plain": "bar"}),
    ]
    notebook = nbformat.v4.new_notebook(cells=[cell, nbformat.v4.new_markdown_cell("text")])
    stamp.scrub(notebook, {"/somewhere/me/data": "<NBTOOLS_DATA>", "/somewhere/me": "~"})
    text, page = cell.outputs
    assert text.text == "<NBTOOLS_DATA>/x.png ~ /somewhere/mean <cell>:3"
    assert page.data == {"text/html": "<a href='~/x'>", "image/png": PIXEL}


def test_times() -> None:
    assert [duration(s) for s in (0.04, 59.94, 60, 125.4, 3599.6, 7800)] == [
        "0.0 s",
        "59.9 s",
        "1 min 00 s",
        "2 min 05 s",
        "1 h 00 min",
        "2 h 10 min",
    ]
    assert time_left([], [3.0]) == ""
    assert time_left([10.0, None], [2.0, 4.0]) == "about 13.0 s left"


def test_folders_are_whole_for_kernels_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in (("NBTOOLS_DATA", "d"), ("NBTOOLS_MODELS", "m"), ("NBTOOLS_CACHE", "c")):
        monkeypatch.setenv(name, value)
    _settle_folders(None, Path("given"))
    assert [os.environ[f"NBTOOLS_{name}"] for name in ("DATA", "MODELS", "CACHE")] == [
        str(tmp_path / name) for name in ("d", "given", "c")
    ]


def test_two_runs_of_one_second_have_two_folders(tmp_path: Path) -> None:
    assert len({new_folder("quick", tmp_path) for _ in range(3)}) == 3
