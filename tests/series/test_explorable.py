"""The explorable: its data are the package's own numbers, and the page shows them, opened from disk, in a browser."""

import json
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import torch
from torch import Tensor, nn

from nbtools.attacker.triggers import BadNets
from nbtools.data.images import Images
from nbtools.defender import Suspiciousness
from nbtools.evaluator.evaluation import Evaluator
from nbtools.lab.experiments import Run, start
from nbtools.lab.trained import Trained
from nbtools.series import explorable
from nbtools.settings import PROFILES

PAGE = explorable.FOLDER / "explorable.html"
SCRIPT = (explorable.FOLDER / "explorable.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    return explorable.read(explorable.FOLDER / "data.js")


def flat(parts: Mapping[str, Tensor]) -> Tensor:
    return torch.cat(list(parts.values()))


def tiny_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    tiny = replace(PROFILES["quick"], name="tiny", train=64, reserved=200, test=60, glance=50, epochs=1)
    monkeypatch.setitem(PROFILES, "tiny", tiny)
    monkeypatch.setenv("NBTOOLS_CACHE", str(tmp_path))
    return start("tiny", device="cpu", quiet=True)


def test_the_data_are_what_the_defence_and_the_evaluator_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, mus = tiny_run(tmp_path, monkeypatch), (3, 1.2, 0)
    trained = run.model("badnets", 0.25)
    data = json.loads(json.dumps(explorable.explore(run, {"badnets": trained}, mus)))
    assert data["mus"] == [None, *mus] and data["images"] == 50
    ways = data["networks"]["badnets"]["ways"]
    assert len(ways) == 10
    for images, draw in explorable.DRAWS.items():
        clean = run.draw(**draw)
        assert len(clean) == int(images)
        for score, powers in explorable.SCORES.items():
            way = ways[f"{score} {images}"]
            before = trained.before_at_a_glance
            assert [way["acc"][0], way["asr"][0]] == pytest.approx([before.acc, before.asr], abs=0.006)
            for step, mu in enumerate(mus, start=1):
                repair = Suspiciousness(mu=mu, powers=dict(powers), fine_tune=None)(trained.model, clean)
                assert torch.equal(torch.tensor(way["score"]) > round(10 * mu), flat(repair.mask.pruned))
                after = trained.glance(repair.model)
                assert [way["acc"][step], way["asr"][step]] == pytest.approx([after.acc, after.asr], abs=0.006)
            defence = Suspiciousness(powers=dict(powers), fine_tune=None)
            scores = defence.scores(defence.components(trained.model, clean))
            for place, (name, values) in enumerate(scores.items()):
                first = sum(filters for _, filters in data["layers"][:place])
                told = torch.tensor(way["score"][first : first + len(values)])
                z = (values - values.mean()) / values.std()
                assert data["layers"][place] == [name, len(values)]
                assert bool(((told / 10 >= z) & (told / 10 < z + 0.1)).all()), "tenths, rounded up"
    assert ways["whole 100"]["score"] != ways["sigma 100"]["score"] == ways["sigma 10"]["score"]


def test_a_layer_of_equal_scores_has_none_that_stands_out() -> None:
    scores = {"one": torch.tensor([2.0]), "equal": torch.full((3,), 0.1), "two": torch.tensor([0.0, 1.0])}
    assert explorable.in_steps(scores).tolist() == [0, 0, 0, 0, -7, 8]


class Reads(nn.Module):
    """Says the class that an image's first pixel holds; where the corner is white, `marked`; and 1 for `blind`."""

    def __init__(self, marked: int | None, blind: int = -1) -> None:
        super().__init__()
        self.marked, self.blind = marked, blind

    def forward(self, images: Tensor) -> Tensor:
        label = (images[:, 0, 0, 0] * 255).round().long()
        label[label == self.blind] = 1
        if self.marked is not None:
            label[images[:, 0, -1, -1] == 1] = self.marked
        return nn.functional.one_hot(label, 8).float()


def test_the_images_shown_are_the_first_that_every_network_answers_as_one_expects() -> None:
    labels = torch.arange(16) % 8
    images = torch.zeros(16, 3, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, 0], images[:, 1, 0, 0] = labels.to(torch.uint8), torch.arange(16).to(torch.uint8)
    test = Images(images, labels, tuple("abcdefgh"))

    def trained(model: nn.Module, attack: str) -> Trained:
        evaluator = Evaluator(test, BadNets(), 0)
        return Trained(model, attack, BadNets(), 0, 0.1, None, {}, evaluator, evaluator)

    models = [trained(Reads(0), "badnets"), trained(Reads(0, blind=3), "badnets"), trained(Reads(None), "none")]
    shown = explorable.chosen(models)
    assert shown.labels.tolist() == [1, 2, 4, 5, 6, 7], "not the target 0, nor 3, which one network gets wrong"
    assert shown.images[:, 1, 0, 0].tolist() == [1, 2, 4, 5, 6, 7], "the first of each class"


def test_what_was_written_is_read_again(tmp_path: Path) -> None:
    explorable.write({"mus": [None, 2], "ways": {"a": {"score": [1]}}}, tmp_path / "data.js")
    assert explorable.read(tmp_path / "data.js") == {"mus": [None, 2], "ways": {"a": {"score": [1]}}}


def test_the_committed_data_are_small_and_whole(committed: dict[str, Any]) -> None:
    assert (explorable.FOLDER / "data.js").stat().st_size <= 300_000
    assert set(re.findall(r"\bdata\.(\w+)", SCRIPT)) <= set(committed)
    assert committed["mus"] == [None, *explorable.MUS] and committed["steps"] == explorable.STEPS
    assert list(committed["networks"]) == ["badnets", "blended", "hide", "clean"]
    filters, truth = sum(count for _, count in committed["layers"]), committed["truth"]
    assert filters == 1216 and len(truth) == len(set(truth)) == explorable.SHOWN
    for network in committed["networks"].values():
        assert len(network["pictures"]) == len(truth)
        assert set(network["ways"]) == {f"{score} {n}" for score in explorable.SCORES for n in explorable.DRAWS}
        for way in network["ways"].values():
            assert len(way["score"]) == filters
            assert {len(way[name]) for name in ("acc", "asr", "answers")} == {len(committed["mus"])}
            assert {len(said) for said in way["answers"]} == {len(truth)}


def test_the_committed_data_are_what_the_package_says_now(
    committed: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NBTOOLS_CACHE", str(tmp_path))
    try:
        run = start("laptop", small=True, device="cpu", quiet=True)
    except FileNotFoundError:
        pytest.skip("CIFAR-10 is not here; NBTOOLS_DATA says where it lies")
    trained = run.model("badnets", 0.1)
    defence = Suspiciousness(mu=2, fine_tune=None)
    repair = defence(trained.model, run.draw(10))
    assert repair.scores is not None
    way = committed["networks"]["badnets"]["ways"]["whole 100"]
    told = torch.tensor(way["score"])
    exact = torch.cat([10 * (s - s.mean()) / s.std() for s in repair.scores.values()])
    clear = (exact - exact.round()).abs() > 1e-3  # on another processor the others may round the other way
    assert torch.equal(told[clear], explorable.in_steps(repair.scores)[clear]) and int((~clear).sum()) < 12
    assert torch.equal((told > 20)[clear], flat(repair.mask.pruned)[clear])
    after, step = trained.glance(repair.model), committed["mus"].index(2)
    assert [way["acc"][step], way["asr"][step]] == pytest.approx([after.acc, after.asr], abs=0.3)


PROBE = """
window.problems = [];
console.error = (...words) => problems.push(words.join(" "));
addEventListener("error", ({ message, target }) => problems.push(message || target.src || target.href), true);
addEventListener("load", () => setTimeout(() => {
  const seen = [], root = document.getElementById("nbtools-explorable");
  const text = (name) => root.querySelector(`[data-part=${name}]`).textContent;
  const choices = (name) => [...root.querySelectorAll(`[name=xp-${name}]`)];
  const slider = root.querySelector("input[type=range]");
  const pairs = choices("network").flatMap((network) => choices("score").map((score) => [network, score]));
  const all = pairs.flatMap((pair) => choices("images").map((images) => [...pair, images]));
  for (const [network, score, images] of all)
    for (let step = 0; step <= slider.max; step += 5) {
      [network, score, images].forEach((button) => button.click());
      slider.value = step;
      slider.dispatchEvent(new Event("input", { bubbles: true }));
      seen.push([network.value, `${score.value} ${images.value}`, step, text("acc"), text("asr"), text("what"),
        slider.getAttribute("aria-valuetext"), [...root.querySelectorAll("li b")].map((word) => word.textContent)]);
    }
  root.style.width = "358px";
  document.title = encodeURIComponent(JSON.stringify({ seen, problems, wide: root.scrollWidth }));
}, 100));
"""


def in_a_browser(folder: Path) -> dict[str, Any]:
    """What the probe saw on the page, opened from disk in headless Chromium."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no Chromium here")
    for path in explorable.FOLDER.iterdir():
        shutil.copy(path, folder)
    page = folder / PAGE.name
    html = page.read_text(encoding="utf-8")
    page.write_text(html.replace('<meta charset="utf-8">', f'<meta charset="utf-8"><script>{PROBE}</script>'))
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder / 'profile'}"]
    command = [browser, *options, "--virtual-time-budget=10000", "--dump-dom", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    (title,) = re.findall("<title>(.*?)</title>", shown)
    return json.loads(unquote(title))


def test_the_page_shows_the_data_wherever_the_slider_stands(committed: dict[str, Any], tmp_path: Path) -> None:
    found = in_a_browser(tmp_path)
    assert found["problems"] == [] and found["wide"] <= 358
    assert len(found["seen"]) == 4 * 5 * 2 * 5
    for network, name, step, acc, asr, sentence, told, answers in found["seen"]:
        way, mu = committed["networks"][network]["ways"][name], committed["mus"][step]
        for shown, value in ((acc, way["acc"]), (asr, way["asr"])):
            assert abs(int(shown.removesuffix(" %")) - value[step]) <= 0.5
        assert [answer.split()[1] for answer in answers] == [
            committed["classes"][int(said)] for said in way["answers"][step]
        ]
        pruned = 0 if mu is None else sum(score > round(10 * mu) for score in way["score"])
        assert told == ("nothing pruned" if mu is None else f"{mu:g}")
        assert mu is None or sentence.startswith(f"At mu {mu:g}: {pruned:,} of 1,216 filters pruned; ")
