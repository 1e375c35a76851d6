"""What the page and the console say of the smaller network that `--shrink` makes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from html import escape
from typing import Any

from nbtools.wording import readable


def sentences(card: Mapping[str, Any]) -> list[str]:
    """How much smaller and faster it is, what stayed and why, and whether it answers the same."""
    numbers = "; ".join(f"{name}: {before} before, {now} now" for name, before, now in _numbers(card))
    return [f"{_taken_out(card)}. {numbers}.", _speed(card), *_stayed(card), _same(card["shrunk"]["same_answers"])]


def _taken_out(card: Mapping[str, Any]) -> str:
    small = card["shrunk"]
    if not small["pruned"]:
        return "No filter is silent, so nothing can be taken out: the smaller network is the repaired one"
    if not small["removed"]:
        return f"None of {small['pruned']:,} silent filters can be taken out: the smaller network is the repaired one"
    return f"{small['removed']:,} of {small['pruned']:,} silent filters were taken out of the smaller network"


def _numbers(card: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What is counted, with its value before and now."""
    small = card["shrunk"]
    rows = [("Parameters", small["parameters"]), ("Floating-point operations for an image", small["flops"])]
    return [(name, *_counted(*values)) for name, values in rows]


def _counted(before: int, now: int) -> tuple[str, str]:
    """Two counts in one unit, that in which the smaller has three digits or more."""
    for unit, word in ((1e6, "million"), (1e3, "thousand")):
        if now >= unit:
            digits = max(0, 3 - len(str(int(now / unit))))
            return f"{before / unit:,.{digits}f} {word}", f"{now / unit:,.{digits}f} {word}"
    return f"{before:,}", f"{now:,}"


def _speed(card: Mapping[str, Any]) -> str:
    """How much faster it is, as far as the pairs of runs tell."""
    small = card["shrunk"]
    low, middle, high = (f"{value:.2f}" for value in small["time_ratio"])
    if small["time_ratio"][2] < 1:
        known = "Faster"
    else:
        known = "Slower" if small["time_ratio"][0] > 1 else "Not measurably faster"
    before, now = (f"{ms:.0f}" if ms >= 10 else f"{ms:.1f}" for ms in small["milliseconds"])
    images = f"{small['batch']} image{'s' * (small['batch'] != 1)}"
    return (
        f"{known}: {images} on {card['hardware']} take {middle} times as long as before (the median of pairs of runs; "
        f"half of them lie from {low} to {high}), about {now} ms in place of {before}."
    )


def _stayed(card: Mapping[str, Any]) -> list[str]:
    """What could not be taken out, by reason, in a sentence; nothing where all could."""
    counts = Counter[str]()
    for part in card["shrunk"]["left"]:
        counts[part["reason"]] += part["filters"]
    if not counts:
        return []
    most = counts.most_common(3)
    more = sum(counts.values()) - sum(count for _, count in most)
    reasons = "; ".join(f"{count:,} because {reason}" for reason, count in most)
    others = f"; {more:,} more, each with its reason on the page" if more else ""
    return [f"What stayed, as zeros: {reasons}{others}."]


def _same(checked: Mapping[str, Any]) -> str:
    parts = []
    for name in ("safetensors", "ONNX"):
        if (found := checked[name]) is None:
            parts.append(f"the {name} file was not run, onnxruntime is not installed")
        else:
            same = f"the same answer to {found['equal']:,} of {checked['images']:,} held-back images"
            gap = found["difference"]
            logits = f"a logit differs by at most {gap:.0e} of the largest" if gap else "all logits are exactly equal"
            parts.append(f"the {name} file gives {same} ({logits})")
    return f"Compared with the repaired model, {', and '.join(parts)}."


def section(card: Mapping[str, Any]) -> str:
    """The page's part on it, "" where none was made."""
    if "shrunk" not in card:
        return ""
    small, (height, width) = card["shrunk"], card["images"]["height_width"]
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td class='number'>{before}</td><td class='number'>{now}</td></tr>"
        for name, before, now in _numbers(card)
    )
    table = f"<table><tr><th></th><th>before</th><th>now</th></tr>{rows}</table>"
    files = "".join(
        f"<li><b>{escape(file['file'])}</b>, {readable(file['bytes'])}<br><code>sha256 {file['sha256']}</code></li>"
        for file in small["files"]
    )
    left = "".join(
        f"<tr><td class='mono'>{escape(part['conv'])}</td><td class='number'>{part['filters']:,}</td>"
        f"<td>{escape(part['reason'])}</td></tr>"
        for part in small["left"]
    )
    listed = f"<details><summary>What stayed, and why</summary><table>{left}</table></details>" if left else ""
    use = (
        f"<p>The ONNX file takes <code>images</code>, float32, any number x 3 x {height} x {width}: red, green and "
        "blue from 0 to 1 (pixels divided by 255); the normalisation is inside. It gives <code>logits</code>, a column "
        "a class. The safetensors file has the names of the file that was given; its metadata (<code>channels</code>) "
        "tell the sizes of each layer that was cut. <code>nbtools.defend.shrink.fit_to(model, state)</code> makes "
        "a network of your own class, built at full size, take them; feed it as you always did.</p>"
    )
    said = [_speed(card), *_stayed(card), _same(small["same_answers"])]
    text = "".join(f"<p>{escape(line)}</p>" for line in said)
    shown = f"<p>{escape(_taken_out(card))}.</p>{table}{text}{listed}<ul class='files'>{files}</ul>{use}"
    return f"<section><h2>The smaller network</h2>{shown}</section>"
