"""The list of classes, however it was written; and no class that gets lost."""

import unicodedata
from pathlib import Path

import pytest

from nbtools.data.folder import class_names


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Two empty classes."""
    for name in "ab":
        (tmp_path / name).mkdir()
    return tmp_path


def test_a_dead_link_to_a_class_is_refused_and_not_a_class_less(two: Path) -> None:
    (two / "c").symlink_to("/not/mounted")
    with pytest.raises(ValueError, match=r"may be a class and can't be read: c \(a dead link\)"):
        class_names(two, 2)
    (two / "c").unlink()
    (two / "classes.txt").symlink_to("/not/mounted/classes.txt")
    with pytest.raises(ValueError, match=r"classes\.txt is a dead link, and should be a text file"):
        class_names(two, 2)


def test_the_folder_that_is_meant_is_named_where_its_parent_was_given(tmp_path: Path) -> None:
    for part in ("train", "val"):
        for name in "abc":
            (tmp_path / part / name).mkdir(parents=True)
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match=r"holds 3: other, train, val") as caught:
        class_names(tmp_path, 10)
    assert "As many" not in str(caught.value)
    (tmp_path / "val" / "d").mkdir()
    with pytest.raises(ValueError, match=r"As many are in \S*/val: one of these may be meant$"):
        class_names(tmp_path, 4)


@pytest.mark.parametrize(
    "encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be", "utf-16-le", "utf-16-be unmarked", "utf-32"]
)
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_list_is_read_as_it_was_written(encoding: str, end: str, tmp_path: Path) -> None:
    names = ("Zürich", "a b", "café", "狐")
    for name in names:
        (tmp_path / unicodedata.normalize("NFD", name)).mkdir()  # as a Mac names folders
    mark = "\ufeff" if encoding == "utf-16-be" else ""
    text = mark + end + "  ".join(end.join(names).rpartition(end)) + end + " " + end  # blank lines, trailing spaces
    (tmp_path / "classes.txt").write_bytes(text.encode(encoding.removesuffix(" unmarked")))
    assert [unicodedata.normalize("NFC", name) for name in class_names(tmp_path, 4)] == list(names)
    assert all((tmp_path / name).is_dir() for name in class_names(tmp_path, 4))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ("a\nbé".encode("latin-1"), r"can't be read as text .* save it as UTF-8"),
        (b"a\n\0b\n", r"can't be read as text .*bytes that are zero.* save it as UTF-8"),
        (b"a\nb\na\n", "names a class twice: a"),
        (b"\xff\xfea", r"can't be read as text .* save it as UTF-8"),
        (b"\r\n \n", "is empty; it should name a class a line, or be removed"),
    ],
)
def test_a_list_that_is_no_text_is_refused_by_name(data: bytes, said: str, two: Path) -> None:
    (two / "classes.txt").write_bytes(data)
    with pytest.raises(ValueError, match=rf"classes\.txt {said}"):
        class_names(two, 2)


def test_a_folder_whose_name_ends_in_a_space_is_found(tmp_path: Path) -> None:
    for name in ("a ", "b"):
        (tmp_path / name).mkdir()
    (tmp_path / "classes.txt").write_text("b\na \n", encoding="utf-8")
    assert class_names(tmp_path, 2) == ("b", "a ")
