"""A person's folder: what can't be read is refused by name, what is left aside, resized or guessed is said."""

import os
import socket
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from nbtools.data.datasets import load
from nbtools.data.folder import read_folder
from nbtools.lab.experiments import start

GREY = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4


def write(path: Path, pixels: np.ndarray | Image.Image | None = None, **options: Any) -> Path:
    """A picture, of its own content where none is given; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels is None:
        pixels = np.random.default_rng(zlib.crc32(bytes(path))).integers(0, 255, (8, 8, 3), np.uint8)
    image = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    image.save(path, **options)
    return path


@pytest.fixture
def two(tmp_path: Path) -> Path:
    """Two classes of three pictures."""
    for name in "ab":
        for n in range(3):
            write(tmp_path / name / f"{n}.png")
    return tmp_path


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="a system without named pipes")
def test_what_bears_a_pictures_name_and_is_no_file_is_refused(two: Path) -> None:
    (two / "a" / "dead.png").symlink_to("nowhere")
    (two / "a" / "loop.JPEG").symlink_to("loop.JPEG")
    (two / "a" / "more").symlink_to("/not/mounted")
    os.mkfifo(two / "b" / "pipe.tif")
    (two / "b" / "to-a-pipe.png").symlink_to("pipe.tif")
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(two)  # the path of a socket may not be long
        server.bind("b/s.bmp")
        os.chdir(here)
    (two / "b" / "images.v1").symlink_to("nowhere")  # it may have been a folder
    with pytest.raises(ValueError, match="7 of 13 images can't be read") as caught:
        read_folder(two, 2)
    for said in ("a/dead.png (a dead link)", "a/loop.JPEG (a link to itself)", "a/more (a dead link)"):
        assert said in str(caught.value)
    assert "b/pipe.tif (a named pipe)" in str(caught.value) and "and 2 more" in str(caught.value)


def test_links_to_pictures_and_folders_are_followed(two: Path) -> None:
    elsewhere = two.parent / f"{two.name}-elsewhere"
    write(elsewhere / "x.png")
    (two / "a" / "z.png").symlink_to(elsewhere / "x.png")
    (two / "c").symlink_to(elsewhere)
    assert read_folder(two, 3).images.labels.tolist() == [0, 0, 0, 0, 1, 1, 1, 2]


def test_pictures_in_folders_below_are_read_in_order_and_said(two: Path) -> None:
    pixels = [write(two / "a" / name).read_bytes() for name in ("0/y.png", "images/x.JPEG", "images/deep/er/x.png")]
    found = read_folder(two, 2)
    assert len(pixels) == 3 and found.images.labels.tolist() == [0] * 6 + [1] * 3
    names = ["0/y.png", "0.png", "1.png", "2.png", "images/deep/er/x.png", "images/x.JPEG"]
    for index, name in enumerate(names):
        with Image.open(two / "a" / name) as image:
            assert found.images.images[index].permute(1, 2, 0).numpy().tolist() == np.array(image).tolist(), name
    assert found.notes == ("3 of 9 images come from folders below those of the classes (a/0, a/images and 1 more).",)


@pytest.mark.parametrize(("link", "to"), [("a/deep/up", ".."), ("a/all", "..")], ids=["in a class", "over classes"])
def test_a_circle_of_links_ends_and_is_said(link: str, to: str, two: Path) -> None:
    (two / link).parent.mkdir(exist_ok=True)
    (two / link).symlink_to(to)
    found = read_folder(two, 2)
    assert len(found.images) == 6
    assert found.notes == ("Left aside in the class folders: 1 link back to a folder above.",)


def test_what_is_left_aside_is_counted(two: Path) -> None:
    hidden = ("b/.hidden.png", "a/.again.png", "__MACOSX/a.png", "a/.cache/t.png", "a/.cache/u.png")
    for name in ("a/x.gif", "b/y.GIF", "z.png", *hidden):
        write(two / name)
    for name in ("a/notes.md", "README", ".DS_Store"):
        (two / name).write_text("")
    found = read_folder(two, 2)
    assert len(found.images) == 6 and found.notes == (
        "Left aside in the class folders: 2 .gif files, 2 hidden files, 2 pictures in hidden folders, 1 .md file.",
        "Left aside beside the class folders: 1 file without an ending, 1 hidden file, 1 picture, "
        "1 picture in hidden folders.",
    )


def test_a_listed_class_is_read_whatever_its_name(two: Path) -> None:
    write(two / "__background__" / "x.png")
    assert "1 picture in hidden folders" in read_folder(two, 2).notes[0]
    (two / "classes.txt").write_text("a\nb\n__background__\n")
    found = read_folder(two, 3)
    assert found.images.labels.tolist() == [0] * 3 + [1] * 3 + [2] and found.notes == ()


def test_a_folder_of_other_files_says_what_it_holds(tmp_path: Path) -> None:
    for n in range(9):
        write(tmp_path / "ab"[n % 2] / f"{n}.gif")
    with pytest.raises(ValueError, match=r"holds no images .* What else is there: 9 \.gif files"):
        read_folder(tmp_path, 2)


@pytest.mark.parametrize("suffix", ["pgm", "pnm", "ppm", "PGM", "bmp", "webp", "tif", "TIFF"])
def test_what_torchvision_reads_is_read(suffix: str, two: Path) -> None:
    options = {"lossless": True} if suffix == "webp" else {}
    write(two / "a" / f"9.{suffix}", np.dstack([GREY] * 3) if suffix in ("ppm", "webp") else GREY, **options)
    assert read_folder(two, 2).images.images[3].equal(torch.from_numpy(GREY).expand(3, 8, 8))


def test_the_size_of_most_is_taken_and_the_others_are_said(two: Path) -> None:
    write(two / "a" / "0.png", Image.new("RGB", (12, 7)))
    write(two / "b" / "9.png", Image.new("RGB", (5, 6)))
    found = read_folder(two, 2)
    assert found.images.size == (8, 8)
    assert found.notes == ("2 of 7 images had another size and were resized to 8x8 (from 5x6 to 12x7).",)


def test_images_of_many_sizes_need_one_to_be_told(two: Path) -> None:
    for n, size in enumerate([(20, 30), (9, 6), (11, 6)]):
        write(two / "a" / f"{n}.png", Image.new("RGB", size))
    said = "4 sizes, 9x6 to 20x30, and no size that more than half of the 6 share; say with --size"
    with pytest.raises(ValueError, match=said):
        read_folder(two, 2)
    assert read_folder(two, 2, (8, 8)).images.size == (8, 8)


def test_sizes_are_read_without_decoding(two: Path) -> None:
    """Headers of pictures whose rest is cut off: the sizes are told before any is decoded."""
    for n, path in enumerate(sorted(two.rglob("*.png"))):
        path.write_bytes(write(path, Image.effect_noise((20 + n, 30), 90)).read_bytes()[:60])
    with pytest.raises(ValueError, match="6 sizes, 20x30 to 25x30"):
        read_folder(two, 2)
    with pytest.raises(ValueError, match="6 of 6 images can't be read"):
        read_folder(two, 2, (8, 8))


def deep(folder: Path, suffix: str, kind: str, *pictures: np.ndarray) -> Path:
    for n, pixels in enumerate(pictures):
        write(folder / "ab"[n % 2] / f"{n}.{suffix}", pixels.astype(kind))
    return folder


@pytest.mark.parametrize(("suffix", "kind"), [("tif", "i4"), ("tif", "u2"), ("tif", ">u2"), ("png", "u2")])
def test_deep_grey_values_are_judged_over_the_whole_folder(suffix: str, kind: str, tmp_path: Path) -> None:
    small, dark = GREY.astype(int), GREY.astype(int) // 2
    plain = read_folder(deep(tmp_path / "plain", suffix, kind, small, dark), 2)
    assert plain.images.images[:, 0].tolist() == [small.tolist(), dark.tolist()]
    assert "from 0 to 252; they were taken as they are" in plain.notes[0]
    wide = read_folder(deep(tmp_path / "wide", suffix, kind, small * 257, small * 5), 2)
    assert wide.images.images[:, 0].tolist() == [small.tolist(), (small * 5 // 256).tolist()], "dark stays dark"
    bits = "32" if kind == "i4" else "16"
    assert f"2 of 2 images have {bits}-bit grey values, from 0 to 64764; they were divided by 256" in wide.notes[0]
    with pytest.raises(
        ValueError, match=r"1 of 2 .*b/1.* \(grey values up to 252, those of others up to 64764: of 8 bits"
    ):
        read_folder(deep(tmp_path / "both", suffix, kind, small * 257, small), 2)
    with pytest.raises(ValueError, match=r"2 of 2 .* \(grey values up to 4032 in files for 65535: of 10 or 12 bits"):
        read_folder(deep(tmp_path / "twelve", suffix, kind, small * 16, small * 8), 2)


def test_a_data_set_has_one_judgement_for_both_halves(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    for half, top in (("train", 60_000), ("test", 300)):
        deep(tmp_path / half, "png", "u2", *random.integers(0, top, (20, 32, 32)))
    found = load(f"folder:{tmp_path}", train=99, reserved=99, test=99)
    assert int(found.test.images.max()) == 1 < int(found.train.images.max())
    assert any(note.startswith("20 of 20 images have 16-bit grey values, from 0 to 5") for note in found.notes)


@pytest.mark.parametrize(
    ("pixels", "said"),
    [
        (GREY.astype("i4") - 5, "its values run from -5 to 247; 0 to 255 and 0 to 65535 are understood"),
        (GREY.astype("i4") * 300, "its values run from 0 to 75600"),
        (GREY.astype("f4"), "its pixels are floats of unknown range; save it with 8 bits"),
    ],
)
def test_values_of_no_known_range_are_refused(pixels: np.ndarray, said: str, two: Path) -> None:
    write(two / "a" / "x.tif", pixels)
    with pytest.raises(ValueError, match=rf"1 of 7 images can't be read: a/x\.tif \({said}"):
        read_folder(two, 2)


def rgb16(path: Path, pixels: np.ndarray) -> None:
    """PIL writes no 16-bit colours: a PNG by hand."""
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows))]
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in [*chunks, (b"IEND", b"")]:
        data += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    path.write_bytes(data)


def test_colours_of_16_bits_are_said_and_refused_where_they_would_be_black(two: Path) -> None:
    colours = np.random.default_rng(1).integers(0, 256, (8, 8, 3))
    rgb16(two / "a" / "x.png", colours * 257)
    found = read_folder(two, 2)
    assert found.images.images[3].permute(1, 2, 0).numpy().tolist() == colours.tolist()
    assert found.notes == ("1 of 7 images have 16 bits a channel, of which the upper 8 were taken.",)
    refused = r"1 of 7 images .* a/x\.png \(16 bits a channel and no value above 4095"
    for dark in (colours, np.where(colours == 7, 300, colours), colours * 15):
        rgb16(two / "a" / "x.png", dark)
        with pytest.raises(ValueError, match=refused):
            read_folder(two, 2)
    (two / "a" / "x.png").unlink()
    (two / "a" / "x.ppm").write_bytes(b"P6 8 8 65535\n" + colours.astype(">u2").tobytes())
    with pytest.raises(ValueError, match=refused.replace("png", "ppm")):
        read_folder(two, 2)


@pytest.mark.parametrize("mode", ["1", "LA", "P", "PA", "CMYK", "RGBA"])
def test_other_kinds_of_pictures_keep_their_colours(mode: str, two: Path) -> None:
    """Alpha is dropped, as in torchvision's loader, and no colour changes with it."""
    plain = np.where(np.dstack([GREY] * 3) > 99, 255, 0).astype(np.uint8)
    image = Image.fromarray(plain).convert("P" if mode == "PA" else mode)
    if mode in ("LA", "RGBA"):
        image.putalpha(Image.fromarray(255 - GREY))
    options = {"transparency": 0} if mode in ("P", "PA") else {}
    write(two / "a" / ("x.tif" if mode == "CMYK" else "x.png"), image, **options)
    assert read_folder(two, 2).images.images[3].permute(1, 2, 0).numpy().tolist() == plain.tolist()


def test_an_orientation_is_said_and_not_applied(two: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    write(two / "a" / "x.png", GREY, exif=exif)
    exif[0x0112] = 1
    write(two / "a" / "y.png", GREY, exif=exif)
    found = read_folder(two, 2)
    assert found.images.images[3].equal(torch.from_numpy(GREY).expand(3, 8, 8))
    assert len(found.notes) == 1 and "1 of 8 images ask in their EXIF data to be turned, and were not" in found.notes[0]


def test_the_first_of_several_pictures_in_a_file_is_read_and_said(two: Path) -> None:
    write(two / "a" / "x.tif", GREY, save_all=True, append_images=[Image.fromarray(255 - GREY)])
    found = read_folder(two, 2)
    assert found.images.images[3, 0].numpy().tolist() == GREY.tolist()
    assert found.notes == ("1 of 7 images hold several pictures, of which the first was taken.",)


def test_the_console_tells_the_notes_of_a_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for half in ("train", "test"):
        for n in range(40):
            write(tmp_path / half / "ab"[n % 2] / f"{n}.png", Image.new("RGB", (40, 30), (n, half == "test", 0)))
        write(tmp_path / half / "x.png")
    (tmp_path / "train" / "a" / "about.md").write_text("")
    splits = start("quick", dataset=f"folder:{tmp_path}", device="cpu").splits
    printed = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note")]
    assert printed == [
        "note      40 of 40 images had another size and were resized to 32x32 (from 40x30).",
        "note      Left aside beside the class folders: 1 picture.",
        "note      train: Left aside in the class folders: 1 .md file.",
        "note      the defender's images hold 2 of class 'a': no draw has more of each class",
    ]
    assert len(splits.to("cpu").notes) == 3
    write(tmp_path / "test" / "b" / "copy.png", Image.new("RGB", (40, 30), (1, 1, 0)))
    warned = start("quick", dataset=f"folder:{tmp_path}", device="cpu", quiet=True).splits.notes
    assert "test: Among the images are 1 copies of others" in warned[-1]
    assert capsys.readouterr().out == ""
