"""A notebook that was edited by hand: it runs as it lies, and no run that writes it loses the edit."""

import json
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner, Result

from nbtools.__main__ import main
from nbtools.series import edits, notebooks
from nbtools.series.arguments import parameters_of

SCRIPT = """# %% [markdown]
# # 00 · Tiny

# %% tags=["parameters"]
profile = "quick"  # scale
mu = 2.0  # threshold

# %%
print("the script's", mu)

# %% tags=["solution", "hide-input"]
print(6 * 7)
"""


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A notebook beside its script, as `run --write` left it."""
    source = tmp_path / "nb" / "src" / "00_tiny.py"
    source.parent.mkdir(parents=True)
    source.write_text(SCRIPT)
    monkeypatch.setenv("NBTOOLS_NOTEBOOKS", str(source.parent))
    script = notebooks.read_script(source)
    script.metadata.nbtools = {"sha256": notebooks.source_hash(script)}
    nbformat.write(script, tmp_path / "nb" / "00_tiny.ipynb")
    return tmp_path / "nb" / "00_tiny.ipynb"


def edit(notebook: Path, old: str = "the script's", new: str = "my own") -> None:
    found = nbformat.read(notebook, as_version=4)
    for cell in found.cells:
        cell.source = cell.source.replace(old, new)
    nbformat.write(found, notebook)


def run(*words: str, out: Path) -> Result:
    return CliRunner().invoke(main, ["run", *words, "--profile", "quick", "--out", str(out)])


def test_an_edited_notebook_named_by_its_file_runs_as_it_lies(written: Path, tmp_path: Path) -> None:
    edit(written)
    result = run(str(written), "-p", "mu", "3", out=tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "my own 3.0" in (tmp_path / "out" / "00_tiny.ipynb").read_text()
    assert "outputs" in written.read_text() and "my own 3.0" not in written.read_text()


def test_writing_takes_the_edits_of_the_named_file_into_its_script(written: Path, tmp_path: Path) -> None:
    edit(written)
    result = run(str(written), "--write", out=tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "00_tiny.ipynb was edited: 00_tiny.py takes its cells first." in result.output
    script = written.parent / "src" / "00_tiny.py"
    assert notebooks.check_committed("00_tiny", script.parent) == []
    assert script.read_text() == SCRIPT.replace("the script's", "my own")
    assert "my own 2.0" in written.read_text()


@pytest.mark.parametrize("names", [(), ("0",), ("00_tiny",)])
def test_writing_refuses_to_lose_an_edit_that_was_not_named(written: Path, tmp_path: Path, names: tuple[str]) -> None:
    edit(written)
    before = written.read_text()
    result = run(*names, "--write", out=tmp_path / "out")
    assert result.exit_code == 2 and written.read_text() == before and not (tmp_path / "out").exists()
    assert "00_tiny.ipynb holds edits that 00_tiny.py does not have, and --write would lose them" in result.output
    assert f"run {written}" in result.output.replace("\n", "") or "name the file" in result.output


def test_two_edits_are_brought_together_by_hand(written: Path, tmp_path: Path) -> None:
    edit(written)
    script = written.parent / "src" / "00_tiny.py"
    script.write_text(SCRIPT + "\n# %%\nprint('new')\n")
    kept = written.read_text(), script.read_text()
    result = run(str(written), "--write", out=tmp_path / "out")
    assert result.exit_code == 2 and "bring the two together by hand" in result.output
    assert (written.read_text(), script.read_text()) == kept


def test_a_script_that_is_newer_than_its_notebook_is_no_edit(written: Path) -> None:
    script = written.parent / "src" / "00_tiny.py"
    script.write_text(SCRIPT + "\n# %%\nprint('new')\n")
    assert edits.check_edits(script, script.parent) is None
    nbformat.write(notebooks.read_script(script), written)  # without a stamp, but with the same cells
    assert edits.check_edits(script, script.parent) is None


def test_outputs_and_the_cells_of_a_run_are_no_edit(written: Path) -> None:
    found = json.loads(written.read_text())
    found["cells"][2]["outputs"] = [{"output_type": "stream", "name": "stdout", "text": "mine"}]
    line = "*Run with profile quick on a machine.*"
    stamp = {"cell_type": "markdown", "id": "s", "metadata": {"tags": ["stamp"]}, "source": line}
    found["cells"].append(stamp)
    written.write_text(json.dumps(found))
    script = written.parent / "src" / "00_tiny.py"
    assert edits.check_edits(script, script.parent) is None
    assert notebooks.choose([str(written)], script.parent) == [script]
    stamp["source"] = f"{line}\n\nI saw 97 %."
    written.write_text(json.dumps(found))
    with pytest.raises(ValueError, match="holds edits"):
        edits.check_edits(script, script.parent)


def test_an_edit_that_is_saved_while_the_notebook_runs_is_kept(written: Path, tmp_path: Path) -> None:
    code = f"from pathlib import Path\nimport json\np = Path({str(written)!r})\nn = json.loads(p.read_text())\n"
    code += "n['cells'][0]['source'] = '# Mine'\np.write_text(json.dumps(n))\n"
    script = written.parent / "src" / "00_tiny.py"
    script.write_text(SCRIPT + f"\n# %%\n{code}")
    result = run("0", "--write", out=tmp_path / "out")
    assert result.exit_code == 1
    assert "it ran, but 00_tiny.ipynb was edited meanwhile and is left as it is" in result.output
    assert "# Mine" in written.read_text() and (tmp_path / "out" / "00_tiny.ipynb").is_file()


def test_a_pasted_picture_is_not_lost_in_a_script(written: Path, tmp_path: Path) -> None:
    found = json.loads(written.read_text())
    found["cells"][0] |= {"source": "![x](attachment:x.png)", "attachments": {"x.png": {"image/png": "aGk="}}}
    written.write_text(json.dumps(found))
    kept = written.read_text(), (written.parent / "src" / "00_tiny.py").read_text()
    result = run(str(written), "--write", out=tmp_path / "out")
    assert result.exit_code == 2 and "holds a pasted picture, which a script can't" in result.output
    assert (written.read_text(), (written.parent / "src" / "00_tiny.py").read_text()) == kept


def test_a_copy_elsewhere_runs_as_it_lies_and_is_written_where_it_lies(written: Path, tmp_path: Path) -> None:
    copy = tmp_path / "home" / "00_tiny.ipynb"
    copy.parent.mkdir()
    copy.write_text(written.read_text())
    edit(copy)
    before = written.read_text()
    result = run(str(copy), "--write", out=tmp_path / "out")
    assert result.exit_code == 0, result.output
    assert "my own 2.0" in copy.read_text() and written.read_text() == before


def test_what_is_no_notebook_is_refused(written: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.ipynb"
    for text in ("", "{}", '{"cells": 3}', "[]"):
        broken.write_text(text)
        result = run(str(broken), out=tmp_path / "out")
        assert result.exit_code == 2 and "broken.ipynb can't be read as a notebook" in result.output, text


def test_parameters_are_read_alike_from_a_script_and_from_its_notebook(written: Path) -> None:
    script = written.parent / "src" / "00_tiny.py"
    assert parameters_of(script) == parameters_of(written)
    assert {name: p.default for name, p in parameters_of(script).items()} == {"profile": "quick", "mu": 2.0}
