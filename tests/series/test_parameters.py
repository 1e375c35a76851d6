"""Every parameter of a notebook and every setting of a defence has a limit; what passes arrives exactly as typed."""

import ast
import dataclasses
import itertools
import math
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

import pytest
from click.testing import CliRunner

from nbtools.__main__ import main
from nbtools.attacker.adaptive import ADAPTIVE
from nbtools.attacker.triggers import TRIGGERS
from nbtools.defender.choices import DEFENCES
from nbtools.lab.cells import Parameter
from nbtools.lab.parameters import CLASSES, FLAGS, LISTS, RANGES, check_parameters, names_for, target_range
from nbtools.series import notebooks
from nbtools.series.arguments import match, parameters_of
from nbtools.series.execute import run_one, this_kernel
from nbtools.series.plan import plan
from nbtools.values import Range, build, options_of, parse, storable

FOLDER = Path(__file__).parents[2] / "notebooks" / "src"
CELLS = {path.stem: parameters_of(path) for path in notebooks.find_sources(FOLDER)}
TABLE = [(stem, name) for stem, cell in CELLS.items() for name in cell if name != "profile"]

NOTHING = (
    "None",
    "{}",
    "()",
    "b'a'",
    "1j",
    "{1}",
    "...",
    "''",
    "two words",
    "1e400",
    "-1e400",
    "nan",
    "inf",
    "lambda: 1",
)
WRONG = (*NOTHING, "{'a': 1}", "-2", str(2**63), str(-(2**63)), str(10**400), "0x" + "f" * 9_000, "1e-400j", "[nan]")
"""What no parameter takes; but () is an empty list, and a profile's attacks."""
ELEMENTS = ("True", "None", "'a'", "''", "[1]", "1e400", "nan", str(10**400), "-2", "{}")
"""What no list takes."""


def limit(name: str) -> Range | None:
    return target_range(CLASSES) if name == "target" else RANGES.get(name)


def refused(stem: str, name: str, text: str) -> bool:
    """Whether `run STEM -p NAME TEXT` is refused at the door, with the parameter's name."""
    cell = CELLS[stem]
    try:
        given = match([(name, text)], {stem: cell})[stem]
        check_parameters({one: parameter.default for one, parameter in cell.items()} | given | {"profile": "quick"})
    except ValueError as error:
        return name.removesuffix("s") in str(error)
    return False


def test_every_parameter_has_a_limit() -> None:
    limited = {*RANGES, *FLAGS, "target", "profile"}
    assert [(stem, name) for stem, name in TABLE if name not in limited and not names_for(name)] == []
    for name, allowed in RANGES.items():
        assert math.isfinite(allowed.least) and math.isfinite(allowed.most), f"{name} has two ends"
    of_a_list = {name for cell in CELLS.values() for name, one in cell.items() if isinstance(one.default, list)}
    assert of_a_list == set(LISTS)
    assert {name for cell in CELLS.values() for name in cell if isinstance(cell[name].default, bool)} == set(FLAGS)


@pytest.mark.parametrize(("stem", "name"), TABLE)
def test_what_no_notebook_can_take_is_refused(stem: str, name: str) -> None:
    default = CELLS[stem][name].default
    assert not refused(stem, name, repr(default)), "its own default is fine"
    for text in WRONG:
        fine = (text == "()" and name in ("attacks", "zoo_attacks")) or (text == "''" and name == "hard_attack")
        assert refused(stem, name, text) != fine, text
    assert refused(stem, name, "[]") != (name in ("attacks", "zoo_attacks"))
    assert refused(stem, name, "True") != (name in FLAGS)
    if name not in LISTS:
        assert refused(stem, name, f"[{default!r}]")
        return
    first = (default or ["badnets"])[0]
    for element in ELEMENTS:
        assert refused(stem, name, f"[{first!r}, {element}]"), element
    assert refused(stem, name, repr(first)), "one value is no list"
    assert refused(stem, name, repr([first, first])) != (name == "zoo_attacks")


@pytest.mark.parametrize(("stem", "name"), [(stem, name) for stem, name in TABLE if limit(name)])
def test_the_ends_of_a_range_are_where_it_says(stem: str, name: str) -> None:
    allowed, of_floats = limit(name), isinstance(_first(CELLS[stem][name]), float)
    assert allowed is not None
    step = 1e-9 if of_floats else 1
    low = allowed.least + step if allowed.above else allowed.least

    def typed(number: float) -> str:
        number = float(number) if of_floats else int(number)
        return repr([number] if name in LISTS else number)

    # the profile's images may end a range earlier
    by_profile = {"samples_per_class": 100, "counts": 100, "many": 100, "n_total": 1_000}
    most = by_profile.get(name, allowed.most)
    assert not refused(stem, name, typed(low)) and not refused(stem, name, typed(most))
    assert refused(stem, name, typed(math.nextafter(most, math.inf) if of_floats else most + 1))
    assert refused(stem, name, typed(low - 2 * step)) or low - 2 * step == allowed.also


def _first(parameter: Parameter) -> Any:
    return parameter.default[0] if isinstance(parameter.default, list) else parameter.default


@pytest.mark.parametrize(
    "words", ["11 -p counts|[0, 5]", "10 -p patience|1e400", "12 -p slider|3", "13 -p trainings|[]"]
)
def test_the_command_refuses_them_before_any_work(words: str, tmp_path: Path) -> None:
    names, value = words.split("|")
    result = CliRunner().invoke(main, ["run", *names.split(), value, "--out", str(tmp_path / "out")])
    assert result.exit_code == 2 and "Traceback" not in result.output, result.output
    assert not (tmp_path / "out").exists()


NEVER = (*NOTHING[3:7], *NOTHING[-5:-1], str(2**63), str(10**400), "0x" + "f" * 9_000)
"""What no setting takes: other kinds of values, and numbers that are infinite or too large to count with."""


def settings_of(kind: type, path: str = "") -> Iterator[str]:
    """The settings of a dataclass, those of its parts among them: "mu", "fine_tune.lr"."""
    hints = get_type_hints(kind)
    for field in dataclasses.fields(kind):
        yield path + field.name
        for part in options_of(hints[field.name]):
            if isinstance(part, type) and dataclasses.is_dataclass(part):
                yield from settings_of(part, f"{path}{field.name}.")


@pytest.mark.parametrize("name", [*DEFENCES, *TRIGGERS, *ADAPTIVE])
def test_what_no_setting_can_be_is_refused(name: str) -> None:
    assert len(NEVER) == 11
    kind = (DEFENCES | TRIGGERS | ADAPTIVE)[name]
    for setting, text in itertools.product(dict.fromkeys(settings_of(kind)), NEVER):
        with pytest.raises(ValueError, match=setting.replace(".", "|")):
            build(kind, {setting: parse(text)}, name)


VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 2**63 - 1, -(2**63 - 1), 2**53 + 1, -0.0, 0.1, 5e-324, 1.7976931348623157e308, 1e22,
    "", "None", "3", "it's \"quoted\"", "'''", '"""', "a\\", "\\n", "line\nbreak", "\r\n\t", "\0", "\x85\u2028", "ünï",
    "名前", "🙂", "{braces}", "{{}}", "%s", "$HOME", "# no comment", "-p", "--out", "[1, 2", "nan", (), (1,),
    (1, (2, "x")), [], [[]], [1, 2.5, "a", None, True], {}, {"a": 1, "b c": [(), {"d": None}]}, {"'": '"', "3": 3},
)  # fmt: skip


def invented(source: random.Random, depth: int = 2) -> Any:
    """Some value that a notebook's file holds."""
    letters = "ab \"'\\\n\t{}#=\0é漢🙂"
    plain = (
        lambda: source.choice((None, True, False)),
        lambda: source.randint(-(2**63) + 1, 2**63 - 1),
        lambda: source.uniform(-1, 1) * 10.0 ** source.randint(-300, 300),
        lambda: "".join(source.choices(letters, k=source.randint(0, 8))),
    )
    if depth == 0 or source.random() < 0.5:
        return source.choice(plain)()
    parts = [invented(source, depth - 1) for _ in range(source.randint(0, 3))]
    return source.choice((list, tuple, lambda parts: {f"{n}{'é' * n}": part for n, part in enumerate(parts)}))(parts)


def typed_values() -> Iterator[tuple[str, Any]]:
    source = random.Random(0)
    for value in (*VALUES, *(invented(source) for _ in range(40))):
        yield repr(value), value
    yield from (
        (text, text) for text in ("plain words", "it's", "{x", "-5 apples", "1e5e5", "C:\\new", "0x" + "f" * 9_000)
    )


def test_values_arrive_in_the_notebook_as_they_were_typed(tmp_path: Path) -> None:
    sources = tmp_path / "notebooks" / "src"
    sources.mkdir(parents=True)
    pairs = {f"v{number}": pair for number, pair in enumerate(typed_values())}
    cell = "\n".join(f"{name} = None  # any" for name in pairs)
    seen = f"import os\nfrom pathlib import Path\nfound = {{name: globals()[name] for name in {list(pairs)}}}\n"
    seen += '_ = (Path(os.environ["NBTOOLS_OUT"]) / "seen.txt").write_text(ascii(found), encoding="ascii")\n'
    (sources / "00_any.py").write_text(f'# %% tags=["parameters"]\n{cell}\n\n# %%\n{seen}')
    out = tmp_path / "out {braces} {} é"
    out.mkdir()
    work = plan([], "quick", [(name, text) for name, (text, _) in pairs.items()], sources)
    with this_kernel(out):
        run_one(work.sources[0], "quick", work.values["00_any"], work.merged["00_any"], out, write=False)
    found = ast.literal_eval((out / "seen.txt").read_text(encoding="ascii"))
    for name, (text, value) in pairs.items():
        assert repr(found[name]) == repr(value), f"typed as {text}"  # repr tells -0.0 from 0.0, True from 1
    assert (out / "00_any.ipynb").is_file()


@pytest.mark.parametrize(
    "text",
    ["1e400", "[1, -1e400]", "b'a'", "{1}", "1j", "...", "{1: 2}", "[{(): 1}]", str(2**63), "[[10000000000000000000]]"],
)
def test_what_a_file_can_not_hold_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"The parameter free takes Any, and .*In 00_any it is free = None"):
        match([("free", text)], {"00_any": {"free": Parameter("free", None, "")}})


def test_what_a_file_can_hold() -> None:
    assert all(storable(value) for _, value in typed_values())
    assert (
        not storable("\udcff") and not storable(["\ud800"]) and not storable({"\udfff": 1}) and not storable(object())
    )
    assert parse("0x" + "f" * 9_000) == "0x" + "f" * 9_000
