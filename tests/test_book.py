"""The book, built once: its links lead somewhere, it asks the network for nothing, and figures say what they show."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from bs4 import BeautifulSoup

pytestmark = pytest.mark.book

ROOT = Path(__file__).parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PHONE = 390
"""Pixels of width."""

each_notebook = pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not all(find_spec(name) for name in ("sphinx", "myst_nb", "sphinx_book_theme")):
        pytest.skip("the book's packages are not installed: `make book` installs them")
    folder = tmp_path_factory.mktemp("book")
    command = [sys.executable, str(ROOT / "book" / "build.py"), str(folder)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder / "html"


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, BeautifulSoup]:
    # Below _static the theme leaves templates.
    paths = [path for path in site.rglob("*.html") if not path.is_relative_to(site / "_static")]
    return {path: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser") for path in paths}


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    if not all(find_spec(name) for name in ("nbconvert", "sphinx_revealjs")):
        pytest.skip("the slides' packages are not installed: `make slides` installs them")
    folder = tmp_path_factory.mktemp("slides")
    command = [sys.executable, str(ROOT / "book" / "slides.py"), str(folder), "00", "06"]
    subprocess.run(command, check=True, capture_output=True)
    return sorted(folder.glob("*.html"))


@contextmanager
def chromium_page(width: int, height: int) -> Iterator[tuple[Any, list[str]]]:
    """A page of a headless Chromium, and a list in which its errors and whatever it asks the network for appear."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not browser:
        pytest.skip("there is no Chromium")
    said: list[str] = []
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page(viewport={"width": width, "height": height})
        page.on("console", lambda message: said.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on(
            "request", lambda request: None if request.url.startswith(("file:", "data:")) else said.append(request.url)
        )
        yield page, said
        chromium.close()


def cells_of(notebook: Path) -> list[dict[str, Any]]:
    return json.loads(notebook.read_text(encoding="utf-8"))["cells"]


def tagged(notebook: Path, tag: str) -> list[dict[str, Any]]:
    return [cell for cell in cells_of(notebook) if tag in cell["metadata"].get("tags", [])]


def page_of(pages: dict[Path, BeautifulSoup], notebook: Path) -> BeautifulSoup:
    (page,) = [page for path, page in pages.items() if path.stem == notebook.stem]
    return page


def test_every_link_and_anchor_leads_somewhere(pages: dict[Path, BeautifulSoup]) -> None:
    anchors = {path: {str(tag["id"]) for tag in page.select("[id]")} for path, page in pages.items()}
    broken, seen = [], 0
    for path, page in pages.items():
        for tag in page.select("a[href], link[href], [src]"):
            link = str(tag.get("href", tag.get("src")))
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            found = target.is_file() and (not parts.fragment or unquote(parts.fragment) in anchors.get(target, ()))
            broken += [] if found else [f"{path.name}: {link}"]
            seen += 1
    assert broken == []
    assert seen > 500


def test_no_page_style_or_script_loads_from_another_place(site: Path, pages: dict[Path, BeautifulSoup]) -> None:
    far = re.compile(r"(?:https?:)?//")
    loaded = [tag for page in pages.values() for tag in page.select("[src], [srcset], [poster], object[data]")]
    loaded += [tag for page in pages.values() for tag in page.select("link[href]")]
    places = [str(tag.get(name, "")) for tag in loaded for name in ("src", "srcset", "poster", "data", "href")]
    assert [place for place in places if far.match(place)] == []
    styles = [path.read_text(encoding="utf-8") for path in site.rglob("*.css")]
    styles += [tag.text for page in pages.values() for tag in page.select("style")]
    assert [hit for text in styles for hit in re.findall(r"(?:url\(|@import)\s*[\"']?(?:https?:)?//.{40}", text)] == []
    loads = re.compile(
        r"(?:\bimport|\bfrom|\bfetch\(|importScripts\(|\.src\s*=|\.href\s*=)\s*\(?[\"'`](?:https?:)?//.{40}"
    )
    scripts = [path.read_text(encoding="utf-8") for path in site.rglob("*.js")]
    scripts += [tag.text for page in pages.values() for tag in page.select("script")]
    assert [hit for text in scripts for hit in loads.findall(text)] == []


@each_notebook
def test_figures_carry_their_own_alt_texts(pages: dict[Path, BeautifulSoup], notebook: Path) -> None:
    kept = [cell for cell in cells_of(notebook) if "remove-cell" not in cell["metadata"].get("tags", [])]
    outputs = [output for cell in kept for output in cell.get("outputs", []) if "image/png" in output.get("data", {})]
    wanted = [output["metadata"]["image/png"]["alt"] for output in outputs]
    assert wanted and all(wanted)
    assert [image.get("alt") for image in page_of(pages, notebook).select(".cell_output img")] == wanted


def test_every_image_has_an_alt_text(pages: dict[Path, BeautifulSoup]) -> None:
    images = [image for page in pages.values() for image in page.select("img")]
    defaults = re.compile("|".join(["^$", r"\.png$", "^No description"]))  # that of Sphinx is the file's name
    assert [image for image in images if defaults.search(str(image.get("alt", "")))] == []
    assert images


@each_notebook
def test_solutions_are_folded_with_their_outputs(pages: dict[Path, BeautifulSoup], notebook: Path) -> None:
    page = page_of(pages, notebook)
    solutions = tagged(notebook, "solution")
    # Other folded cells are those of tag hide-input: what only draws, or answers a prediction.
    folded = [each for each in page.select("details:not([open])") if "Show the solutions" in each.text]
    assert len(folded) == len(solutions) > 0
    for cell, details in zip(solutions, folded, strict=True):
        assert "".join(cell["source"]).strip() in details.text
        assert len(details.select(".cell_output")) == bool(cell["outputs"])
        assert details.find_next_sibling(class_="cell_output") is None


@each_notebook
def test_checks_of_a_run_are_absent(pages: dict[Path, BeautifulSoup], notebook: Path) -> None:
    text = page_of(pages, notebook).text
    removed = [cell for tag in ("remove-cell", "install") for cell in tagged(notebook, tag)]
    assert removed and not any("".join(cell["source"]).strip() in text for cell in removed)


def test_notebooks_stand_in_order(pages: dict[Path, BeautifulSoup]) -> None:
    wanted = [notebook.stem for notebook in NOTEBOOKS]
    for path, page in pages.items():
        links = [str(link["href"]) for link in page.select("nav.bd-links a")]
        entries = [path.stem if link == "#" else Path(link).stem for link in links]
        assert [entry for entry in entries if entry[:2].isdecimal()] == wanted, path
    for before, after in pairwise(NOTEBOOKS):
        (following,) = page_of(pages, before).select("a.right-next")
        (previous,) = page_of(pages, after).select("a.left-prev")
        assert (following["href"], previous["href"]) == (f"{after.stem}.html", f"{before.stem}.html")


def test_the_front_page_can_be_played_with_and_shows_a_figure_without_scripts(site: Path) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not browser:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        page = chromium.new_page(viewport={"width": PHONE, "height": 844}, has_touch=True)
        page.goto((site / "index.html").as_uri())
        told = page.locator("#nbtools-explorable [data-part=what]")
        said = [told.text_content()]
        page.locator("#nbtools-explorable input[value=blended]").tap()
        page.locator("#nbtools-explorable input[type=range]").focus()
        for key in ("End", "ArrowLeft"):
            page.keyboard.press(key)
            said.append(told.text_content())
        assert said[0].startswith("Nothing is pruned") and said[1].startswith("At mu 0:")
        assert said[2].startswith("At mu 0.5:")
        plain = chromium.new_page(java_script_enabled=False)
        plain.goto((site / "index.html").as_uri())
        figure = plain.locator("#nbtools-explorable img")
        assert figure.is_visible() and "ASR against mu" in str(figure.get_attribute("alt"))
        chromium.close()


def test_a_phone_shows_every_page_whole_and_in_silence(pages: dict[Path, BeautifulSoup]) -> None:
    with chromium_page(PHONE, 844) as (page, said):
        for path in pages:
            page.goto(path.as_uri())
            equations = page.locator(".math").count()
            if equations:
                page.wait_for_function("document.querySelectorAll('.math > mjx-container').length == " + str(equations))
            wrong = page.locator("mjx-container :is(merror, mtext[mathcolor=red])")  # red: an unknown command
            assert wrong.count() == 0, f"{path.name}: {wrong.all_text_contents()}"
            page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
            assert page.evaluate("document.documentElement.scrollWidth") <= PHONE, f"{path.name} scrolls to the side"
            assert said == [], path.name


def test_those_who_teach_find_their_page_and_an_answer_to_each_question(pages: dict[Path, BeautifulSoup]) -> None:
    assert any(path.name == "teaching.html" for path in pages)
    text = (ROOT / "book" / "teaching.md").read_text(encoding="utf-8")
    answers = text.partition("## Questions for the reading group")[2].partition("## What goes wrong")[0]
    for notebook in NOTEBOOKS:
        source = "\n".join("".join(cell["source"]) for cell in cells_of(notebook) if cell["cell_type"] == "markdown")
        asked = source.partition("**For the reading group**")[2].partition("**Further reading**")[0]
        (section,) = [part for part in answers.split("\n### ") if part.startswith(notebook.stem[:2])]
        wanted = len(re.findall(r"^\d\. ", asked, re.MULTILINE))
        assert len(re.findall(r"^\d\. \*[^*]+\?\*", section, re.MULTILINE)) == wanted > 0, notebook.stem


def test_slides_have_a_section_for_each_heading_and_no_answer_to_an_exercise(slides: list[Path]) -> None:
    assert [path.stem for path in slides] == ["00_start_here", "06_suspiciousness"]
    for path in slides:
        (notebook,) = [notebook for notebook in NOTEBOOKS if notebook.stem == path.stem]
        text = "\n\n".join("".join(cell["source"]) for cell in cells_of(notebook) if cell["cell_type"] == "markdown")
        headings = re.findall(r"^##? (.+)$", text, re.MULTILINE)
        desk = ("Exercises", "Solutions", "How to read", "The field's words")
        wanted = [heading for heading in headings if not any(word in heading for word in desk)]
        page = BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser")
        assert [heading.text.rstrip("¶") for heading in page.select("section :is(h1, h2)")] == wanted
        sources = ["".join(cell["source"]).strip() for cell in tagged(notebook, "hide-input")]
        assert not any(source in page.text for source in sources)
        images = page.select("section img")
        assert images and all(len(str(image.get("alt", ""))) > 20 for image in images)


def test_no_slide_is_wider_than_a_projector_or_asks_the_network(slides: list[Path]) -> None:
    with chromium_page(1280, 720) as (page, said):
        for path in slides:
            page.goto(path.as_uri())
            page.wait_for_function("window.Reveal && Reveal.isReady()")
            page.wait_for_function("!document.querySelector('.MathJax_Processing') && MathJax.startup.promise")
            shown = 0
            while True:
                wide = page.evaluate(WIDER)
                assert wide == [], f"{path.name}, slide {shown}: {wide}"
                shown += 1
                if page.evaluate("Reveal.isLastSlide()"):
                    break
                page.evaluate("Reveal.next()")
            assert shown > 20
            assert said == [], path.name


WIDER = """() => {
    const slide = Reveal.getCurrentSlide(), edge = slide.getBoundingClientRect().right + 1;
    const parts = [...slide.querySelectorAll('*')].filter(part => !part.closest('mjx-assistive-mml'));
    const wide = parts.filter(part => part.getBoundingClientRect().width && part.getBoundingClientRect().right > edge);
    const outer = [[document.documentElement.scrollWidth, "the page"], [edge - 1, "the slide"]];
    const cut = outer.filter(([right]) => right > window.innerWidth + 1).map(([, name]) => name);
    return cut.concat(wide.map(part => part.outerHTML.slice(0, 80)));
}"""
"""What of the current slide stands out to the right."""
