"""The work behind `python -m nbtools defend`: everything is checked first, then repaired, then written at once."""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nbtools.data.folder import read_folder
from nbtools.defend.architecture import check_arch
from nbtools.defend.card import Job, Request, make_card
from nbtools.defend.checkpoint import Checkpoint, bits, in_form_of, read
from nbtools.defend.figures import score_figure
from nbtools.defend.findings import detector, read_references, right
from nbtools.defend.fitting import Fitted, fit
from nbtools.defend.report import page
from nbtools.defend.shrink import ENDINGS as SMALL
from nbtools.defend.shrink import check_shrink, shrink
from nbtools.defend.smaller import sentences
from nbtools.defend.start import begin
from nbtools.defender.choices import make_defence
from nbtools.defender.learning import check_inputs
from nbtools.defender.validation import Validation
from nbtools.networks.graph import duplicate
from nbtools.networks.units import check_finite, prunable_units
from nbtools.settings import default_device
from nbtools.values import parse

ENDINGS = {"torch": (".pt", ".pth", ".ckpt", ".bin", ".tar"), "safetensors": (".safetensors",)}


def prepare(request: Request, say: Callable[[str], None] = lambda _: None) -> Job:
    """Check and read everything, and see whether the model answers these images; nothing is written.

    Args:
        request: what was asked for.
        say: is told how everything was read, and what may be wrong with it.

    Raises:
        ValueError: for whatever can't be worked with, a model at chance level among it, with what to do.
    """
    outputs = _outputs(request)
    check_arch(request.arch, request.strides)
    defence = make_defence(request.defence, [(name, parse(text)) for name, text in request.settings])
    if not 0 < request.held_back < 1:
        raise ValueError(f"--held-back is a share of each class's images, above 0 and below 1, got {request.held_back}")
    split = Validation(share=request.held_back).split
    references = read_references(request.references) if request.references else None
    checkpoint = read(request.model, request.key)
    if request.out.suffix.lower() in ENDINGS["safetensors" if checkpoint.kind == "torch" else "torch"]:
        raise ValueError(
            f"{request.model.name} is a {checkpoint.kind} file and the repaired one will be too; end --out in "
            f"{ENDINGS[checkpoint.kind][0]}, not {request.out.suffix}"
        )
    fitted = fit(checkpoint.state, request.arch, request.strides, request.mean, request.std, checkpoint.inside)
    folder = read_folder(request.images, fitted.num_classes, request.size)
    device = torch.device(request.device) if request.device else default_device()
    fitted.model.to(device)
    fitted.model.image_size = folder.images.size  # type: ignore[assignment]  # whoever looks into it tries these first
    learn, held = split(folder.images.to(device))
    try:
        check_inputs(fitted.model, learn)
    except (RuntimeError, NotImplementedError) as error:  # an image too small for the strides
        height, width = learn.size
        reason = str(error).splitlines()[0]
        raise ValueError(f"{request.arch} can't compute images of {width}x{height} ({reason}); see --size") from None
    if request.shrink:
        check_shrink(fitted.model, learn)
    say(
        f"{request.model.name}: {fitted.arch}, width {fitted.width}, {fitted.num_classes} classes. {len(learn)} "
        f"clean images for the defence, {len(held)} held back."
    )
    start = begin(fitted.model, learn, held)
    job = Job(request, outputs, defence, checkpoint, fitted, folder, learn, held, references, start)
    refused = start.hopeless and not request.anyway
    for kind, lines in (("Note", job.notes), ("Warning", job.doubts if refused else job.warnings)):
        for line in lines:
            say(f"{kind}: {line}")
    if refused:
        raise ValueError(start.refusal(request.images, job.fed()))
    return job


def _outputs(request: Request) -> tuple[Path, ...]:
    """The page's, the card's, the checkpoint's and the smaller network's places, all free to be written."""
    out = request.out
    known = {ending for endings in ENDINGS.values() for ending in endings}
    stem = out.name.removesuffix(out.suffix) if out.suffix.lower() in known else out.name
    if out.suffix.lower() in (".html", ".json"):
        raise ValueError(
            f"--out is the repaired checkpoint, and {out.name} would be overwritten by the page or the card"
        )
    if not out.parent.is_dir():
        raise ValueError(f"the folder of --out, {out.parent}, is not there; make it first")
    small = [out.with_name(f"{stem}{ending}") for ending in SMALL] if request.shrink else []
    outputs = (out.with_name(f"{stem}.html"), out.with_name(f"{stem}.json"), out, *small)
    for path in outputs:
        for name, given in (("--model", request.model), ("--references", request.references)):
            if given is not None and path.exists() and given.exists() and path.samefile(given):
                raise ValueError(f"{path} is the file that {name} names; the input is never overwritten")
        if path.is_dir() or (os.path.lexists(path) and not request.force):
            raise ValueError(f"{path} is already there; give another --out" + ("" if path.is_dir() else ", or --force"))
    try:
        with tempfile.TemporaryFile(dir=out.parent) as probe:  # really tried: permission bits do not tell
            probe.write(b"nbtools")
    except OSError as error:
        raise ValueError(f"nothing can be written in {out.parent}: {error.strerror}") from None
    return outputs


def defend(job: Job, say: Callable[[str], None]) -> dict[str, Any]:
    """Repair, measure, and write all files at once; returns the card.

    Raises:
        DivergedError, ValueError: where the defence can't do its work; nothing is then written.
        OSError: where the files can't be written; none is then there.
    """
    started = time.perf_counter()
    model, fitted = job.fitted.model, job.fitted
    say("Looking at magnitude and saliency ...")
    looked = detector(model, job.folder.images.to(job.held.images.device), job.references)
    say(f"Repairing: {job.defence!r} ...")
    repair = job.defence(model, job.learn)
    changes = changed(fitted, job.checkpoint, repair.model)
    saved = _as_saved(fitted, repair.model, job.checkpoint.state, changes)
    after = right(saved, job.held)
    data = job.checkpoint.serialised(changes)
    card = make_card(job, repair, changes, data, after, looked)
    files = [data]
    if job.request.shrink:
        say("Taking out silent filters ...")
        card["shrunk"], small = shrink(saved, fitted, job.checkpoint, job.held)
        for file, path in zip(card["shrunk"]["files"], job.outputs[3:], strict=True):
            file["file"] = path.name
        files += small
    card["seconds"] = round(time.perf_counter() - started, 2)
    short = {unit.conv: fitted.short_name(unit.conv) for unit in prunable_units(model)}
    mu, scope = getattr(job.defence, "mu", None), getattr(job.defence, "scope", "layer")
    figure = score_figure(repair.scores, repair.mask, short, mu, scope) if repair.scores else ""
    text = json.dumps(card, indent=2, allow_nan=False, ensure_ascii=False)
    place(dict(zip(job.outputs, (page(card, figure).encode(), f"{text}\n".encode(), *files), strict=True)))
    for line in sentences(card) if job.request.shrink else ():
        say(line)
    return card


def changed(fitted: Fitted, checkpoint: Checkpoint, repaired: nn.Module) -> dict[str, Tensor]:
    """The file's names of the tensors that the repair changed, to their new values in the file's own precision.

    Changed is what differs in the precision of the computation, float32, bit for bit: rounding the file's float64 to it
    is no repair. Of a tensor that was changed in part, as a batch norm's gamma is by pruning, the other elements keep
    the file's own bits; and what differs so little that the file's precision can't hold it is not changed at all.

    Args:
        fitted: the model as it was given, untouched.
        checkpoint: the file that it was fitted to.
        repaired: a repaired copy of `fitted.model`.
    """
    before, after, state = fitted.model.state_dict(), repaired.state_dict(), checkpoint.state
    found = {}
    for ours, name in fitted.names.items():
        touched = bits(before[ours]) != bits(after[ours])
        if bool(touched.any()):
            value = in_form_of(state[name], after[ours].cpu(), touched.cpu())
            if not torch.equal(bits(value), bits(state[name])):
                found[name] = value
    return found


def _as_saved(
    fitted: Fitted, repaired: nn.Module, state: Mapping[str, Any], changes: Mapping[str, Tensor]
) -> nn.Module:
    """The repaired model as its owner will load it: rounded to the file's own precision."""
    twin = duplicate(repaired).eval()
    saved = {**state, **changes}
    twin.load_state_dict({ours: saved[name] for ours, name in fitted.names.items()}, strict=False)
    check_finite(twin)
    return twin


def place(files: Mapping[Path, bytes]) -> None:
    """Write all files, in this order, or none: beside their places first, then each renamed into its place."""
    there = {path for path in files if os.path.lexists(path)}
    with tempfile.TemporaryDirectory(dir=next(iter(files)).parent, prefix=".nbtools-") as work:
        for path, data in files.items():
            with open(Path(work) / path.name, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        try:
            for path in files:
                os.replace(Path(work) / path.name, path)
        except BaseException:  # Ctrl-C as well
            for path in set(files) - there:
                with suppress(FileNotFoundError):
                    path.unlink()
            raise
