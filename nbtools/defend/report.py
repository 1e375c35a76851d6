"""The page: one HTML file that needs nothing else, made from the card alone."""

from __future__ import annotations

from collections.abc import Mapping
from html import escape
from typing import Any

from scipy.stats import binomtest

from nbtools.defend import smaller
from nbtools.defend.style import STYLE
from nbtools.wording import duration, readable

Card = Mapping[str, Any]
ALL_LAYERS = 24
"""Up to so many layers all are drawn; of more, those alone that lost filters."""
MANY_CLASSES = 20
"""Above so many their images are counted in a fold of the page."""
LEVEL = 0.05
"""From this p-value on, what is seen is too little to show anything, and the page says so."""
TRIED = (
    "On ten clean and ten backdoored networks (width 16, CIFAR-10) it told the two apart with a ROC-AUC of 0.66, 95 % "
    "interval 0.41 to 0.84: chance, 0.5, lies in it."
)
"""See "The detector" in data/lab_notes.md."""
SAME = "the repaired file holds the same weights"
CAUTION = (
    "No clean image carries a trigger, so nothing here can show whether there was a backdoor, or that it is gone. What "
    "is measured is what the repair costs. If you train the repaired network further, keep its batch norms in eval "
    "mode: training that moves their statistics often brings a silenced backdoor back."
)


def verdict(card: Card) -> list[str]:
    """What is known first, in sentences: whether anything means anything, what it cost, what was done."""
    pruned, accuracy, defence = card["pruned"], card["accuracy"], card["defence"]
    who = f"The defence {defence['name']}"
    touched = sum(bool(layer["pruned"]) for layer in pruned["layers"].values())
    count, total, tensors = pruned["count"], pruned["filters"], len(card["output"]["changed_tensors"])
    steps = f"{defence['tuned_steps']:,} step{'s' * (defence['tuned_steps'] != 1)}"
    tuned = f" and tuned the weights for {steps}" if defence["tuned_steps"] else ""
    images = f"{sum(card['images']['for_the_defence']):,} clean images"
    if count:
        where = f"{touched} of {len(pruned['layers'])} layers"
        done = (
            f"{who} pruned {count:,} of {total:,} filters ({_percent(count / total)}) in {where}{tuned}, with {images}."
        )
    elif tensors:
        how = f"tuned {tensors} tensors for {steps}" if defence["tuned_steps"] else f"changed {tensors} tensors"
        done = f"{who} {how} and pruned no filter, with {images}."
    elif defence["tuned_steps"]:
        done = f"{who} tuned for {steps}, by less than the file's precision can hold, with {images}: {SAME}."
    else:
        done = f"{who} found nothing to prune with {images}: {SAME}."
    return [*_doubt(card["start"]), _cost(accuracy), done]


def _doubt(start: Card) -> list[str]:
    """That nothing below means anything, where that is known."""
    if not start["at_chance"]:
        return []
    return [
        f"The model was right on {start['right']:,} of {start['of']:,} images before anything was done, no more often "
        "than chance: no other number on this page means anything."
    ]


def _cost(accuracy: Card) -> str:
    """What is known of clean accuracy, and then the numbers."""
    before, after = accuracy["before"], accuracy["after"]
    low, high = after["interval"]
    if not accuracy["lost"] + accuracy["gained"]:
        known = "Clean accuracy is what it was, answer for answer"
    elif accuracy["lost"] == accuracy["gained"]:
        known = f"Clean accuracy is what it was, as many answers gained as lost ({accuracy['lost']})"
    else:
        moved = f"Clean accuracy {'fell' if accuracy['points'] < 0 else 'rose'} by {abs(accuracy['points']):.1f} points"
        known = f"{moved}, more than chance explains"
        if accuracy["p_value"] >= LEVEL:
            least, most = _change(accuracy)
            known = (
                f"{moved}, and these images are too few to tell whether it changed at all (95 % interval of the change "
                f"{least:+.1f} to {most:+.1f} points)"
            )
    return (
        f"{known}: on {before['of']:,} held-back images it was {before['percent']:.1f} % before and is "
        f"{after['percent']:.1f} % now (95 % interval {low:.1f} to {high:.1f})."
    )


def _change(accuracy: Card) -> tuple[float, float]:
    """A 95 % interval of the change at least, in points: exact ones of 97.5 % for answers lost and gained, combined."""
    of = accuracy["before"]["of"]
    lost, gained = (binomtest(accuracy[what], of).proportion_ci(0.975) for what in ("lost", "gained"))
    return 100 * (gained.low - lost.high), 100 * (gained.high - lost.low)


def page(card: Card, figure: str) -> str:
    """The whole page.

    Args:
        card: the JSON card.
        figure: the score's distribution as a data URL, "" where the defence has no scores.
    """
    image = f'<img src="{figure}" alt="Score of every filter by layer; crosses mark the pruned filters.">'
    text = "<p>A point is a filter; crosses are pruned.</p>"
    drawn = _section("Every filter's score", image + text) if figure else ""
    card = {**card, "verdict": [line.replace(" %", "\u00a0%") for line in card["verdict"]]}
    sections = [_first_screen(card), _accuracy(card), _layers(card), drawn, smaller.section(card)]
    sections += [_detector(card), _settings(card)]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; style-src '
        "'unsafe-inline'\">\n"
        f"<title>Repair of {escape(card['input']['file'])}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(part for part in sections if part)
        + "\n</main>\n</body>\n</html>\n"
    )


def _section(title: str, inside: str) -> str:
    return f"<section><h2>{title}</h2>{inside}</section>"


def _first_screen(card: Card) -> str:
    pruned, accuracy, defence = card["pruned"], card["accuracy"], card["defence"]
    known = " ".join(map(escape, card["verdict"]))
    tiles = [
        ("filters pruned", f"{pruned['count']:,}", f"of {pruned['filters']:,}"),
        ("clean accuracy before", f"{accuracy['before']['percent']:.1f} %", _interval(accuracy["before"])),
        ("clean accuracy now", f"{accuracy['after']['percent']:.1f} %", _interval(accuracy["after"])),
        ("time of the defence", duration(defence["seconds"]), escape(card["hardware"])),
    ]
    boxes = "".join(
        f'<div class="tile"><span>{name}</span><b>{value}</b><small>{below}</small></div>'
        for name, value, below in tiles
    )
    warned = ""
    if card["warnings"]:
        lines = "".join(f"<li>{escape(line)}</li>" for line in card["warnings"])
        warned = f'<aside class="warn"><h2>To be warned of</h2><ul>{lines}</ul></aside>'
    model = card["model"]
    about = f"{model['arch']}, width {model['width']}, {model['num_classes']} classes, {card['date'][:10]}"
    return (
        f"<header><p class='kind'>Repair report</p><h1>{escape(card['input']['file'])}</h1>"
        f"<p class='about'>{escape(about)}</p></header><p class='verdict'>{known}</p>"
        f"<p class='caution'>{CAUTION}</p>"
        f'<div class="tiles">{boxes}</div>{warned}'
    )


def _percent(share: float) -> str:
    return f"{100 * share:.{2 if share < 0.1 else 3}g} %"


def _interval(share: Mapping[str, Any]) -> str:
    return f"{share['interval'][0]:.1f} to {share['interval'][1]:.1f}, {share['right']:,} of {share['of']:,}"


def _accuracy(card: Card) -> str:
    """Both accuracies as points with their intervals on one scale, and what changed."""
    table = card["accuracy"]
    least = max(0, 10 * int((min(table[when]["interval"][0] for when in ("before", "after")) - 3) / 10))

    def at(value: float) -> float:
        return 100 * (value - least) / (100 - least)

    rows = ""
    for when, name in (("before", "before"), ("after", "now")):
        low, high = map(at, table[when]["interval"])
        rows += (
            f'<div class="row"><span class="name">{name}</span><span class="track">'
            f'<i class="whisker" style="left:{low:.2f}%;width:{high - low:.2f}%"></i>'
            f'<i class="dot {when}" style="left:{at(table[when]["percent"]):.2f}%"></i></span>'
            f'<span class="value">{table[when]["percent"]:.1f} %</span></div>'
        )
    scale = (
        f'<div class="row scale"><span></span><span class="ends"><i>{least} %</i><i>100 %</i></span><span></span></div>'
    )
    text = (
        f"<p>Measured on images that the defence never saw, after rounding to the file's own precision. Lines are "
        f"Wilson 95 % intervals. Right before and wrong now: {table['lost']}; wrong before and right now: "
        f"{table['gained']} (exact sign test: p = {table['p_value']:.2g}).</p>"
    )
    return _section("Clean accuracy on held-back images", f'<div class="chart">{rows}{scale}</div>{text}')


def _layers(card: Card) -> str:
    """A bar a layer: the share of its filters that was pruned."""
    layers = card["pruned"]["layers"]
    if not card["pruned"]["count"]:
        return ""
    shares = {name: len(layer["pruned"]) / layer["filters"] for name, layer in layers.items()}
    most = max(shares.values())
    shown = [name for name in layers if len(layers) <= ALL_LAYERS or shares[name]]
    rows = "".join(
        f'<div class="row"><span class="name mono">{escape(layers[name]["shown_as"])}</span><span class="track plain">'
        f'<i class="bar" style="width:{100 * shares[name] / most:.2f}%"></i></span>'
        f'<span class="value">{len(layers[name]["pruned"])} of {layers[name]["filters"]}</span></div>'
        for name in shown
    )
    left = (
        f" {len(layers) - len(shown)} layers without a pruned filter are left out." if len(shown) < len(layers) else ""
    )
    alone = len(card["pruned"]["without_batch_norm"])
    left += f" {alone} convolutions have no batch norm of their own and can't be pruned." if alone else ""
    items = "".join(
        f"<tr><td class='mono'>{escape(name)}</td><td>{', '.join(map(str, layer['pruned']))}</td></tr>"
        for name, layer in layers.items()
        if layer["pruned"]
    )
    listed = f"<details><summary>Numbers of the pruned filters, from 0</summary><table>{items}</table></details>"
    text = f"<p>In the order of the data. The longest bar is {_percent(most)} of a layer's filters.{left}</p>"
    return _section("Where filters were pruned", f'<div class="chart">{rows}</div>{text}{listed}')


def _detector(card: Card) -> str:
    """What is known, then what it rests on; the number itself and the correlation of each layer lie folded."""
    found, title = card["detector"], "Does the model look backdoored?"
    if found["statistic"] is None:
        return _section(title, f"<p><b>Not known.</b> The detector has no number: {escape(found['reason'])}.</p>")
    error = found["standard_error"]
    spread = f" ± {1.96 * error:.2f} (95 %, over halves of the {found['images']} images)" if error is not None else ""
    judged = found.get("verdict")
    text = _judged(judged) if judged else (
        "<p><b>Not known.</b> How high a clean model of the same kind lies was not given (<code>--references</code>), "
        f"and without that the detector's number is no verdict.</p><p>{TRIED}</p>"
    )  # fmt: skip
    rows = "".join(_correlation(card["pruned"]["layers"][name]["shown_as"], v) for name, v in found["layers"].items())
    inside = (
        f"<p>The detector's number: {found['statistic']:.2f}{spread}. It is one minus the mean rank correlation of "
        "filters' magnitude (size of the weights, batch norm included) and saliency (what clean images lose without "
        "them) in the last stage, from 0 to 2. In a clean model large filters matter; filters that are large and "
        "matter to no clean image raise it. The defence did not use it.</p>"
    )
    text += f"<details><summary>The number, and each layer</summary>{inside}<div class='chart'>{rows}</div></details>"
    return _section(title, text)


def _judged(judged: Card) -> str:
    """How a model stands among clean ones, what that shows first."""
    p, models = judged["p_value"], judged["models"]
    low, high = (100 * value for value in judged["interval"])
    least = 1 / (models + 1)
    if least >= LEVEL:
        known = f"Not known. {models} clean reference models are too few to show anything: 20 are needed"
    elif p >= LEVEL:
        known = "Nothing shows it. Its number lies no higher among those of clean models than chance explains"
    else:
        known = "It does: its number lies higher among those of clean models than chance explains"
    return (
        f"<p><b>{known}.</b> Against {models} clean reference models: {100 * judged['quantile']:.0f} % of them lie "
        f"below (p = {p:.2g} that a clean model looks so; so few can't show less than {least:.2g}). Of all such clean "
        f"models {low:.0f} to {high:.0f} % would lie at or above it (95 %). This holds only if the references are of "
        f"the same kind, trained and measured alike.</p><p>{TRIED}</p>"
    )


def _correlation(name: str, value: float) -> str:
    left = 50 + 50 * min(value, 0)
    return (
        f'<div class="row"><span class="name mono">{escape(name)}</span><span class="track middle">'
        f'<i class="bar soft" style="left:{left:.1f}%;width:{50 * abs(value):.1f}%"></i></span>'
        f'<span class="value">{value:+.2f}</span></div>'
    )


def _settings(card: Card) -> str:
    given, made, model, images = card["input"], card["output"], card["model"], card["images"]
    counts = zip(images["classes"], images["for_the_defence"], images["held_back"], strict=True)
    listed = ", ".join(f"{escape(name)} {learn} + {held}" for name, learn, held in counts)
    if len(images["classes"]) > MANY_CLASSES:
        listed = f"<details><summary>{len(images['classes'])} classes</summary>{listed}</details>"
    versions = ", ".join(f"{name} {number}" for name, number in card["versions"].items())
    rows = [
        ("Defence", f"<code>{escape(card['defence']['settings'])}</code>"),
        ("Normalisation", f"mean {escape(str(model['mean']))}, std {escape(str(model['std']))}"),
        ("Strides", escape(str(model["strides"])) if model["strides"] else "the architecture's own"),
        ("Images", f"{images['height_width'][1]}x{images['height_width'][0]} pixels; by class, for the defence + held "
         "back: " + listed),
        ("Before any work", _started(card["start"])),
        ("File given", f"{escape(given['file'])}, {given['kind']}, {' and '.join(given['dtypes'])}, "
         f"{readable(given['bytes'])}<br><code>sha256 {given['sha256']}</code>"),
        ("File made", f"{escape(made['file'])}, {len(made['changed_tensors'])} tensors changed, "
         f"{readable(made['bytes'])}<br><code>sha256 {made['sha256']}</code>"),
        ("How it was read", "<br>".join(map(escape, card["notes"])) or "as it is"),
        ("Peak memory", readable(card["defence"]["peak_bytes"]) if card["defence"]["peak_bytes"] else "not known"),
        ("Made with", escape(f"{versions}; {card['hardware']}; {card['date']}; {card['seconds']} s in all")),
    ]  # fmt: skip
    body = "".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in rows)
    return _section("Settings and files", f'<table class="settings">{body}</table>')


def _started(start: Mapping[str, Any]) -> str:
    return f"right on {start['right']:,} of all {start['of']:,} images; chance is {_percent(start['chance'] / 100)}"
