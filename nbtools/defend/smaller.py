"""What the page and the console say of the smaller network that `--shrink` makes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from html import escape
from typing import Any

from nbtools.wording import readable


def sentences(card: Mapping[str, Any]) -> list[str]:
    """How much smaller and faster it is, what stayed and why, and whether it answers the same."""
    small = card["shrunk"]
    if not small["pruned"]:
        first = "No filter is silent, so nothing can be taken out: the smaller network is the repaired one"
    elif not small["removed"]:
        first = f"None of {small['pruned']:,} silent filters can be taken out: the smaller network is the repaired one"
    else:
        first = f"{small['removed']:,} of {small['pruned']:,} silent filters were taken out of the smaller network"
    numbers = "; ".join(f"{before} {name} before, {after} now" for name, before, after in _numbers(card))
    said = [f"{first}: {numbers}."]
    if small["left"]:
        counts = Counter[str]()
        for part in small["left"]:
            counts[part["reason"]] += part["filters"]
        most = counts.most_common(3)
        more = sum(counts.values()) - sum(count for _, count in most)
        reasons = "; ".join(f"{count:,} because {reason}" for reason, count in most)
        others = f"; {more:,} more, each with its reason on the page" if more else ""
        said.append(f"What stayed, as zeros: {reasons}{others}.")
    return [*said, _same(small["same_answers"])]


def _numbers(card: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What is counted, with its value before and now."""
    small = card["shrunk"]
    images = f"{small['batch']} image{'s' * (small['batch'] != 1)}"
    rows = [
        ("million parameters", small["parameters"], 1e6, 2),
        ("million floating-point operations for an image", small["flops"], 1e6, 1),
        (f"milliseconds for {images} on {card['hardware']}", small["milliseconds"], 1, 2),
    ]
    return [(name, f"{before / unit:,.{d}f}", f"{after / unit:,.{d}f}") for name, (before, after), unit, d in rows]


def _same(checked: Mapping[str, Any]) -> str:
    parts = []
    for name in ("safetensors", "ONNX"):
        if (found := checked[name]) is None:
            parts.append(f"the {name} file was not run, onnxruntime is not installed")
        else:
            same = f"the same answer to {found['equal']:,} of {checked['images']:,} held-back images"
            parts.append(
                f"the {name} file gives {same} (a logit differs by at most {found['difference']:.0e} of the largest)"
            )
    return f"Compared with the repaired model, {', and '.join(parts)}."


def section(card: Mapping[str, Any]) -> str:
    """The page's part on it, "" where none was made."""
    if "shrunk" not in card:
        return ""
    small, (height, width) = card["shrunk"], card["images"]["height_width"]
    rows = "".join(
        f"<tr><th>{escape(name)}</th><td>{before} before</td><td>{after} now</td></tr>"
        for name, before, after in _numbers(card)
    )
    files = "".join(
        f"<tr><th>{escape(file['file'])}</th><td>{readable(file['bytes'])}<br><code>sha256 {file['sha256']}</code></td>"
        "</tr>"
        for file in small["files"]
    )
    left = "".join(
        f"<tr><td class='mono'>{escape(part['conv'])}</td><td>{part['filters']:,}</td>"
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
    text = "".join(f"<p>{escape(line)}</p>" for line in sentences(card))
    return f"<section><h2>The smaller network</h2>{text}<table>{rows}{files}</table>{use}{listed}</section>"
