"""Plain data beside the weights is read by hand and written back as it was; what is no data is refused in our words."""

import argparse
import collections
import datetime
import io
import pathlib
import pickle
import types
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from nbtools.defend.beside import NotData, Type, _path
from nbtools.defend.checkpoint import Checkpoint, read

WEIGHTS = {"conv.weight": torch.ones(2, 3, 1, 1)}
KINDS = ("?", "b", "B", "h", "H", "i", "I", "l", "L", "e", "f", "d", "g", "F", "D", "G", ">f4", ">i8", "S5", "U3")
KINDS += ("M8[D]", "M8[25s]", "m8[ns]", "M8")


def given(path: Path, beside: Any) -> Checkpoint:
    torch.save({"net": WEIGHTS, "beside": beside}, path)
    return read(path)


def told(value: Any) -> Any:
    """Types and values all the way down, in a form that can be compared."""
    if isinstance(value, np.ndarray):
        native = value.dtype.newbyteorder("=")
        inside = list(map(told, value.ravel())) if native.hasobject else value.astype(native).tobytes()
        return "array", native, value.shape, inside
    if isinstance(value, np.generic):
        return type(value), value.dtype, value.tobytes()
    if isinstance(value, dict):
        items = [(told(name), told(part)) for name, part in value.items()]
        return type(value), items, getattr(value, "default_factory", "")
    if isinstance(value, list | tuple | collections.deque):
        return type(value), [told(part) for part in value], getattr(value, "maxlen", "")
    if isinstance(value, argparse.Namespace | types.SimpleNamespace):
        return type(value), told(vars(value))
    return type(value), value


def arrays(kind: str) -> list[Any]:
    """An array of a kind in several layouts, one of its numbers, and the type itself."""
    array = np.zeros(6, kind)
    if array.dtype.kind in "SU":
        array[:] = ["a", "bc", "", "xyz", "q", "e"]
    else:
        array[:] = np.arange(6).astype(kind) if array.dtype.kind not in "Mm" else np.arange(6).view(kind)
    table = array.reshape(2, 3)
    return [array, table, np.asfortranarray(table), table[:, 1], array[:0], array[3], array.dtype, np.array(array[2])]


@pytest.mark.parametrize("kind", KINDS)
def test_numpys_numbers_and_arrays_are_what_numpys_own_reader_makes_of_them(tmp_path: Path, kind: str) -> None:
    beside = arrays(kind)
    checkpoint = given(tmp_path / "a.pt", beside)
    (tmp_path / "b.pt").write_bytes(checkpoint.serialised({}))
    reference = torch.load(tmp_path / "a.pt", weights_only=False)["beside"]
    assert told(checkpoint.content["beside"]) == told(reference) == told(beside)
    assert told(torch.load(tmp_path / "b.pt", weights_only=False)["beside"]) == told(beside)


RECORDS = np.array([(1, 2.5, "ab")], dtype=[("a", "i4"), ("b", "<f8"), ("c", "U2")])


@pytest.mark.parametrize(
    "beside",
    [
        {"acc": max(round(np.mean([True, False, True]), 3), 0.5), np.int64(3): {"path": "3", "other": [np.int8(1)]}},
        [RECORDS, RECORDS[0], RECORDS.dtype, np.zeros(2, [("s", "f4", (2, 2))]), np.void(b"ab")],
        np.array([[{}, np.arange(2), None], ["a", (np.float32(1),), 2]], object),
        (1, (np.arange(2), {"a": np.arange(3)}), [np.str_("hello"), np.bytes_(b"x"), np.bool_(True)]),
        [float, np.float32, np.int64, range(3), slice(1, 2), b"", ()],
        [np.dtype, np.ndarray, bytes, range, pathlib.Path, collections.deque],
        collections.defaultdict(collections.deque, a=collections.deque([1])),
        [torch.float16, torch.device("cpu"), torch.Size([1])],
        {np.int64(3), 1.5, frozenset([2])},
        argparse.Namespace(lr=np.float32(0.1), folder=pathlib.Path("a/b"), kept=[np.arange(3)]),
        types.SimpleNamespace(a=1, inner=argparse.Namespace(b=(np.arange(2),))),
        [datetime.datetime(2020, 1, 2, 3, tzinfo=datetime.UTC), datetime.date(2020, 1, 2), datetime.timedelta(1, 2, 3)],
        [pathlib.PurePosixPath("a/b"), pathlib.PureWindowsPath("c:\\x")],
        collections.defaultdict(list, loss=[np.float64(1)]),
        [collections.deque([1, np.arange(2)], maxlen=4), collections.Counter("aab")],
        collections.OrderedDict(a=np.ones(2)),
        [np.random.RandomState(0).get_state(), np.random.default_rng(0).bit_generator.state],
    ],
)  # fmt: skip
def test_other_data_is_read_and_written_back_as_it_was(tmp_path: Path, beside: Any) -> None:
    checkpoint = given(tmp_path / "a.pt", beside)
    assert checkpoint.place == ("net",) and told(checkpoint.content["beside"]) == told(beside)
    (tmp_path / "b.pt").write_bytes(checkpoint.serialised({"conv.weight": torch.zeros(2, 3, 1, 1)}))
    assert told(torch.load(tmp_path / "b.pt", weights_only=False)["beside"]) == told(beside)


def test_what_is_shared_stays_shared_and_a_list_may_hold_itself(tmp_path: Path) -> None:
    array = np.arange(2)
    beside: list[Any] = [array, {"again": array}]
    beside.append(beside)
    found = given(tmp_path / "a.pt", beside).content["beside"]
    assert found[0] is found[1]["again"] and found[2] is found


@pytest.mark.parametrize("name", ["PosixPath", "WindowsPath"])
def test_a_path_of_the_other_system_is_read_and_written_back(name: str) -> None:
    path = _path(name, "a", "b")
    assert type(path).__name__ == name and path.parts == ("a", "b") and pickle.dumps(path, 2).count(name.encode()) == 1


def attack_result(version: int) -> dict[str, Any]:
    """The file that BackdoorBench writes, by its public description: an older form with images, a newer with paths."""
    index = np.flatnonzero(np.arange(8) % 4 == 0)
    old = {"x": torch.rand(2, 3, 32, 32), "y": torch.tensor([0, 0]), "original_index": index}
    new = {
        "bd_data_container": {
            "save_folder_path": "record/x",
            "data_dict": {key: {"path": f"record/x/{key}.png", "other_info": [0, np.int64(3)]} for key in index},
            "save_file_format": ".png",
        },
        "getitem_all": True,
        "getitem_all_switch": False,
        "original_index_array": np.arange(8),
        "poison_indicator": (np.arange(8) % 4 == 0).astype(float),
        "save_folder_path": "record/x",
    }
    sets = {"bd_train": (old, new)[version], "bd_test": (old, new)[version]}
    data = {"data_path": "../data/cifar10", "img_size": [32, 32, 3], "clean_data": "cifar10"}
    return {"model_name": "preactresnet18", "num_classes": 10, "model": WEIGHTS, **data, **sets}


@pytest.mark.parametrize("version", [0, 1])
def test_backdoorbenchs_result_is_read_as_it_comes_and_its_images_are_no_weights(tmp_path: Path, version: int) -> None:
    torch.save(attack_result(version), tmp_path / "attack_result.pt")
    checkpoint = read(tmp_path / "attack_result.pt")
    assert checkpoint.place == ("model",) and checkpoint.others == ()
    assert set(checkpoint.beside) >= {"bd_train", "bd_test", "model_name"}
    (tmp_path / "b.pt").write_bytes(checkpoint.serialised({"conv.weight": torch.zeros(2, 3, 1, 1)}))
    again = torch.load(tmp_path / "b.pt", weights_only=False)
    assert again.pop("model")["conv.weight"].sum() == 0
    wanted = torch.load(tmp_path / "attack_result.pt", weights_only=False)
    if version == 1:
        assert told(again) == told({name: value for name, value in wanted.items() if name != "model"})
    else:
        assert torch.equal(again["bd_test"]["x"], wanted["bd_test"]["x"])


def written(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def archive(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "hello")


def numpys(path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, a=np.ones(2))


def script(path: Path) -> None:
    torch.jit.script(nn.ReLU()).save(str(path))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: torch.save({"net": WEIGHTS, "f": len}, p), r"Python object \(len\)"),
        (lambda p: torch.save({"net": WEIGHTS, "f": nn.ReLU}, p), r"Python object \(torch\.nn\..*ReLU\)"),
        (lambda p: torch.save({"net": WEIGHTS, "f": np.ma.array([1])}, p), r"Python object \(numpy\.ma"),
        (lambda p: torch.save({"net": WEIGHTS, "f": np.array([len], object)}, p), r"Python object \(len\)"),
        (lambda p: torch.save(WEIGHTS, p, pickle_protocol=4), "pickle_protocol of its own"),
        (lambda p: written(p, pickle.dumps(WEIGHTS)), "no torch file"),
        (numpys, "archive of NumPy arrays"),
        (archive, r"archive without a torch\.save in it"),
        (script, "TorchScript archive"),
    ],
)  # fmt: skip
def test_what_is_no_data_is_refused_without_the_advice_to_load_it_unsafely(
    tmp_path: Path, make: Callable[[Path], None], said: str
) -> None:
    make(tmp_path / "a.pt")
    with pytest.raises(ValueError, match=said) as error:
        read(tmp_path / "a.pt")
    unsafe = ("weights_only", "allowlist", "safe_globals", "trust", "github", "issue")
    assert [word for word in unsafe if word in str(error.value)] == []
    assert str(error.value).endswith("torch.save(model.state_dict(), FILE), or a safetensors file")


def test_parts_that_do_not_fit_are_refused() -> None:
    from nbtools.defend.beside import _bytes, _empty, _of_bytes, _range

    for shape, raw in (((3,), b"ab"), ((-1,), b"a"), ((10**12,), b"a"), ((1,), [1])):
        with pytest.raises(NotData, match="does not fit its bytes"):
            _of_bytes(shape, np.dtype("u1"), raw)
    with pytest.raises(NotData, match="does not fit its bytes"):
        _of_bytes((1,), np.dtype("O"), bytes(8))
    with pytest.raises(NotData, match="none of the plain ones"):
        _empty(np.matrix, (0,), b"b")
    with pytest.raises(NotData, match="the NumPy type 'T'"):
        Type("T")
    with pytest.raises(NotData, match="range too long"):
        _range(0, 10**12)
    with pytest.raises(NotData, match="bytes that are none"):
        _bytes(7)  # type: ignore[arg-type]


def test_reading_leaves_torchs_own_list_of_names_as_it_was(tmp_path: Path) -> None:
    before = set(torch.serialization.get_safe_globals())
    given(tmp_path / "a.pt", np.float64(1))
    assert set(torch.serialization.get_safe_globals()) == before
    file = io.BytesIO()
    torch.save(np.float64(1), file)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(io.BytesIO(file.getvalue()), weights_only=True)
