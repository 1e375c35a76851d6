"""A notebook's own parameters are checked before any work; what is wrong is told in sentences, not in a traceback."""

import pickle
import sys
from types import SimpleNamespace

import pytest

from nbtools.data.places import DataNotFound, not_found
from nbtools.lab.cells import check_cells
from nbtools.lab.experiments import start
from nbtools.wording import WrongParameter

CELL = """profile = "quick"  # scale
attack = "badnets"  # which
mu = 2.0  # threshold
seed = 0  # of all
mus = [1.0]  # more"""
WORK = "import torch\nrun = torch.zeros(1)"


def changed(line: str) -> str:
    name = line.split(" =")[0]
    return "\n".join(line if old.startswith(f"{name} =") else old for old in CELL.splitlines())


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('profile = "lapto"', "There is no profile 'lapto'. Did you mean laptop?"),
        ('attack = "badnet"', "There is no attack 'badnet'. Did you mean badnets"),
        ("attack = 3", "There is no attack '3'."),
        ("mu = -1", "mu=-1 is out of range: 0 to 1000"),
        ('mu = "2"', "mu='2' is no number: 0 to 1000"),
        ("mu = True", "mu=True is no number"),
        ("seed = 1.5", "seed=1.5 is no whole number: 0 to 1000000000"),
        ("mus = []", "mus=[] is out of range"),
        ("mu = 1e400", "mu=inf is out of range: 0 to 1000"),
        ("mus = (1.0, 1e400)", "mus=(1.0, inf) is out of range"),
        ("mus = {1.0: 2.0}", "mus={1.0: 2.0} is no list: of 0 to 1000"),
        ("mus = [{1.0: 2.0}]", "mus=[{1.0: 2.0}] is no number: 0 to 1000"),
        ("mus = 2.0", "mus=2.0 is no list: of 0 to 1000"),
        ("mus = [2.0, 2]", "mus=[2.0, 2] has a value twice; give each once"),
        ("mu = [2.0]", "mu=[2.0] is no number: 0 to 1000"),
        ("attack = ['badnets']", "There is no attack \"['badnets']\"."),
        ("seed = 9223372036854775808", "seed=9223372036854775808 is out of range: 0 to 1000000000"),
        ("attack = {}", "There is no attack '{}'."),
        ("profile = []", "There is no profile '[]'."),
    ],
)
def test_a_wrong_value_in_the_parameters_cell_is_refused(line: str, message: str) -> None:
    with pytest.raises(WrongParameter, match="in the parameters cell") as refusal:
        check_cells(["", WORK, CELL, changed(line), WORK])
    assert str(refusal.value).startswith(message)


def test_the_last_parameters_cell_counts_and_other_cells_do_not() -> None:
    check_cells([])
    check_cells([WORK, "mu = -1", "%matplotlib inline", "if", 'answer = "'])
    check_cells([changed("mu = -1"), "mu = -5", CELL, "answer = ..."])
    check_cells([CELL, "# Parameters\nmu = 3\n", "mu = -1\nseed = -2"])
    check_cells([CELL, "# Parameters\nmu = -1\n", CELL])
    check_cells([CELL, "# Parameters\nprint(mu)\n"])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("muu = 3", "There is no parameter 'muu'. Did you mean mu"),
        ("mu = -1", "mu=-1 is out of range"),
        ('mu = "high"', "The parameter mu takes float, and 'high' is str."),
        ('profile = "huge"', "There is no profile 'huge'."),
        (
            "mu = float('nan')",
            "this notebook: the parameters cell may hold only `name = literal`, not `mu = float('nan')`",
        ),
        ("mu = '", "this notebook: the parameters cell is not Python: "),
        (
            "seed = 9223372036854775808",
            "The parameter seed takes int, and 9223372036854775808 is too large: a whole number",
        ),
    ],
)
def test_what_papermill_was_given_is_refused(line: str, message: str) -> None:
    with pytest.raises(WrongParameter, match="papermill was given this value") as refusal:
        check_cells([CELL, f"# Parameters\n{line}\n", WORK])
    assert str(refusal.value).startswith(message)


def test_a_notebook_is_checked_where_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    shell = SimpleNamespace(user_ns={"In": ["", changed("mu = -1")]})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    with pytest.raises(WrongParameter, match="mu=-1"):
        start("quick")
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: None))
    with pytest.raises(ValueError, match="unknown profile 'huge'"):
        start("huge")


def test_a_notebook_shows_sentences_instead_of_a_traceback() -> None:
    error = not_found("cifar10")
    assert isinstance(error, FileNotFoundError) and str(error).startswith("CIFAR-10 is not here. To go on without it:")
    shown = error._render_traceback_()
    assert shown[0] == "DataNotFound: CIFAR-10 is not here." and all(line.startswith("- ") for line in shown[1:])
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is DataNotFound and str(again) == str(error) and again.sentences == error.sentences
