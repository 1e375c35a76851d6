"""The repository's address: written into every place at once, the same again, and a page stays its script, executed."""

import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nbformat
import pytest
from click.testing import CliRunner

from nbtools.__main__ import main
from nbtools.series import address, notebooks
from nbtools.series.address import badges, checked, in_script, install_cell, spread, with_badges

ROOT = Path(__file__).parents[2]
URL = "https://github.com/somebody/backdoors"
STEMS = ("00_start_here", "02_spectral_norm")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkout with two of the notebooks."""
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "notebooks" / "src").mkdir(parents=True)
    for stem in STEMS:
        shutil.copy(ROOT / "notebooks" / "src" / f"{stem}.py", tmp_path / "notebooks" / "src")
        shutil.copy(ROOT / "notebooks" / f"{stem}.ipynb", tmp_path / "notebooks")
        _pair(tmp_path / "notebooks" / "src" / f"{stem}.py")
    return tmp_path


def _pair(source: Path) -> None:
    """Make the committed page its script's pair, whatever was edited since it ran: outputs where cells have them."""
    page = notebooks.committed_path(source)
    found: Any = nbformat.read(page, as_version=4)
    by_text = {cell.source: cell for cell in found.cells if cell.cell_type == "code"}
    script = notebooks.read_script(source)
    for number, cell in enumerate([cell for cell in script.cells if cell.cell_type == "code"], start=1):
        cell.outputs = by_text[cell.source].outputs if cell.source in by_text else []
        notebooks.count(cell, number)
    found.metadata.nbtools["sha256"] = notebooks.source_hash(script)
    found.cells = [*script.cells, found.cells[-1]]
    page.write_text(nbformat.writes(found) + "\n")


def problems(folder: Path) -> list[str]:
    return [line for stem in STEMS for line in notebooks.check_committed(stem, folder / "notebooks" / "src")]


def outputs(page: Path) -> list[Any]:
    cells = json.loads(page.read_text())["cells"]
    return [{**o, "execution_count": 0} for cell in cells for o in cell.get("outputs", [])]


def test_the_address_goes_everywhere_and_once_more_changes_nothing(copy: Path) -> None:
    pages = [copy / "notebooks" / f"{stem}.ipynb" for stem in STEMS]
    before = [outputs(page) for page in pages]
    assert problems(copy) == []
    told = spread(copy, URL + ".git/")
    assert len(told) == 6 and problems(copy) == [], told
    assert [outputs(page) for page in pages] == before and before[1], "what ran is left as it is"
    everything = [path for path in copy.rglob("*") if path.is_file()]
    assert all(f"{URL}" in path.read_text() for path in everything if path.suffix in (".py", ".toml", ".md"))
    assert f"git clone {URL} && cd backdoors\n" in (copy / "README.md").read_text()
    assert not [path for path in everything if "OWNER/" in path.read_text()]
    assert spread(copy) == [] == spread(copy, URL)
    spread(copy, "https://github.com/some-body/else_where")
    assert problems(copy) == [] and URL not in "".join(path.read_text() for path in everything)
    assert [outputs(page) for page in pages] == before


def test_a_notebook_has_badges_below_its_title_and_one_install_cell_before_its_parameters(copy: Path) -> None:
    spread(copy, URL)
    for stem in STEMS:
        cells = json.loads((copy / "notebooks" / f"{stem}.ipynb").read_text())["cells"]
        title, empty, *lines = "".join(cells[0]["source"]).splitlines()
        assert title.startswith("# 0") and not empty and not lines[2] and lines[3]
        assert lines[0].endswith(f"/github/somebody/backdoors/blob/main/notebooks/{stem}.ipynb)")
        assert lines[1].endswith(f"/gh/somebody/backdoors/main?labpath=notebooks/{stem}.ipynb)")
        assert all(f"](figures/{name}.svg)]" in line for name, line in zip(("colab", "binder"), lines, strict=False))
        tags = [cell["metadata"].get("tags", []) for cell in cells]
        code = [cell for cell in cells if cell["cell_type"] == "code"]
        assert tags.count(["install", "hide-input"]) == 1
        assert tags.index(["install", "hide-input"]) == tags.index(["parameters"]) - 1
        assert code[0]["metadata"]["jupyter"] == {"source_hidden": True} and code[0]["outputs"] == []
        assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
        assert len({cell["id"] for cell in cells}) == len(cells)


def test_the_scripts_stay_tidy(copy: Path) -> None:
    spread(copy, "https://github.com/" + "a-rather-long-name" * 2 + "/" + "of-a-repository" * 2)
    (copy / "nbtools").symlink_to(ROOT / "nbtools")  # so that its modules are first-party there as well
    ruff = shutil.which("ruff") or str(Path(sys.executable).with_name("ruff"))
    for words in (["check"], ["format", "--check"]):
        command = [ruff, *words, "--no-cache", "notebooks/src"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, cwd=copy)
        assert ended.returncode == 0, ended.stdout


def test_a_page_that_is_not_its_script_is_told_and_keeps_its_stamp(copy: Path) -> None:
    source = copy / "notebooks" / "src" / "02_spectral_norm.py"
    source.write_text(source.read_text().replace("mus = [1.5, ", "mus = ["))
    page = notebooks.committed_path(source)
    old = json.loads(page.read_text())["metadata"]["nbtools"]
    assert spread(copy, URL)[-1] == "02_spectral_norm.ipynb is not its script, executed; its stamp is left as it was."
    assert json.loads(page.read_text())["metadata"]["nbtools"] == old
    assert URL in page.read_text() and len(problems(copy)) == 2, "the difference is still told"
    assert len(spread(copy, URL)) == 1, "and nothing but that"


@pytest.mark.parametrize("url", ["", "github.com/a/b", "https://github.com/a", "https://github.com/a/b/c", "ftp://x/y"])
def test_a_wrong_address_is_refused_and_nothing_written(copy: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "ROOT", copy)
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match="the address of a repository is"):
        checked(url)
    if url:
        refused = CliRunner().invoke(main, ["address", url])
        assert refused.exit_code == 2 and "https://github.com/OWNER/REPOSITORY" in refused.output
    assert {path: path.read_bytes() for path in before} == before


def test_the_command_tells_what_it_changed(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "ROOT", copy)
    said = CliRunner().invoke(main, ["address", URL])
    assert said.exit_code == 0 and "README.md" in said.output and "00_start_here.ipynb" in said.output
    assert CliRunner().invoke(main, ["address"]).output == "Nothing had to be changed.\n"


def test_a_place_without_a_line_for_it_is_refused(copy: Path) -> None:
    with pytest.raises(ValueError, match="does not begin with a title"):
        in_script("# %% [markdown]\n# text\n", "00_x", URL)
    with pytest.raises(ValueError, match="00_x has no parameters cell"):
        in_script("# %% [markdown]\n# # 00\n\n# %%\nx = 1\n", "00_x", URL)
    (copy / "README.md").write_text("nothing\n")
    with pytest.raises(ValueError, match=r"README\.md has no line for the address"):
        spread(copy, URL)
    assert URL not in (copy / "pyproject.toml").read_text()


def test_badges_ask_no_other_place_for_a_picture() -> None:
    for line in badges(URL, "00_start_here", "figures"):
        picture = re.findall(r"\]\((figures/\w+\.svg)\)\]", line)
        text = (ROOT / "notebooks" / picture[0]).read_text()
        assert ElementTree.fromstring(text).tag.endswith("svg")
        assert re.findall(r"https?://[^\"]+", text) == ["http://www.w3.org/2000/svg"], "the name of the language alone"
    assert with_badges("# A title", "x", URL).count("\n") == 3


def executed(monkeypatch: pytest.MonkeyPatch, folder: Path, there: bool, returncode: int = 0) -> list[list[str]]:
    """The commands that the install cell gives, in an empty folder."""
    commands: list[list[str]] = []

    def run(command: list[str], **_options: Any) -> SimpleNamespace:
        commands.append(command)
        return SimpleNamespace(returncode=returncode)

    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: SimpleNamespace() if there else None)
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr("nbtools.series.install.install", lambda: commands.append(["installed", sys.path[0]]))
    exec(install_cell(URL), {})
    return commands


def test_the_install_cell_does_nothing_where_nbtools_is(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert executed(monkeypatch, tmp_path, there=True) == []
    assert capsys.readouterr().out == ""


def test_the_install_cell_fetches_once_and_installs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    clone = ["git", "clone", "--quiet", "--depth", "1", URL, "backdoor-series"]
    assert executed(monkeypatch, tmp_path, there=False) == [clone, ["installed", "backdoor-series"]]
    (tmp_path / "backdoor-series").mkdir()
    assert executed(monkeypatch, tmp_path, there=False) == [["installed", "backdoor-series"]], "it lies there already"


def test_an_address_that_can_not_be_reached_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=f"{URL} could not be fetched"):
        executed(monkeypatch, tmp_path, there=False, returncode=128)
