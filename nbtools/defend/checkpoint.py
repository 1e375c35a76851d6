"""A checkpoint as it lies in a file: read without running anything it holds, written back in the form it came in."""

from __future__ import annotations

import copy
import hashlib
import io
import json
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.serialization import safe_globals

from nbtools.defend.beside import NotData, Reading

PREFERRED = ("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "params", "module")
"""Names under which training scripts put the weights; where a file holds several sets, the first of these is taken."""
DEPTH = 4
INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""By their size in bytes."""
ADVICE = "save the weights alone: torch.save(model.state_dict(), FILE), or a safetensors file"


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """What a file holds.

    Args:
        kind: "safetensors" or "torch".
        content: the whole file; the weights may lie in a part of it.
        place: the names that lead to the weights, () where the file is the weights.
        others: places of further sets of weights, which are left as they are.
        sha256: of the file.
        size: of the file, in bytes.
        metadata: of a safetensors file.
        inside: what stands before the names of the network that is meant, in the weights, where there are several.
    """

    kind: str
    content: Any
    place: tuple[str, ...]
    others: tuple[str, ...]
    sha256: str
    size: int
    metadata: dict[str, str] | None = field(default=None)
    inside: str = ""

    @property
    def state(self) -> Mapping[str, Any]:
        """Names to tensors, and whatever else the owner put beside them."""
        return _at(self.content, self.place)

    @property
    def beside(self) -> tuple[str, ...]:
        """What else lies beside the weights, by name."""
        return (
            tuple(str(name) for name in _at(self.content, self.place[:-1]) if name != self.place[-1])
            if self.place
            else ()
        )

    def serialised(self, changes: Mapping[str, Tensor]) -> bytes:
        """The file with these tensors in place of those of the same name: same names, types, nesting, format.

        Args:
            changes: a name in the file to its new value; it is cast to the old one's type and must have its shape.
        """
        state = copy.copy(self.state)
        assert isinstance(state, dict)
        for name, value in changes.items():
            state[name] = in_form_of(state[name], value)
        if self.kind == "safetensors":
            return safetensors.torch.save(state, self.metadata)
        buffer = io.BytesIO()
        torch.save(_replaced(self.content, self.place, state), buffer)
        return buffer.getvalue()


def in_form_of(old: Tensor, value: Tensor, where: Tensor | None = None) -> Tensor:
    """The value in the old tensor's type and layout.

    Args:
        old: any shape and type.
        value: of the same shape; it is rounded to the old one's type.
        where: bool of the same shape: elsewhere the old one's own bits stay. None takes the value everywhere.
    """
    new = torch.empty_like(old, requires_grad=False).copy_(value.detach())
    if where is not None:
        bits(new).copy_(torch.where(where, bits(new), bits(old)))
    return nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new


def bits(tensor: Tensor) -> Tensor:
    """A view as whole numbers of the same size: NaN equals itself there, and 0 is not -0."""
    return tensor.detach().view(INTEGERS[tensor.itemsize])


def read(path: Path, key: str | None = None) -> Checkpoint:
    """Read a safetensors file, or a torch file with weights_only=True; nothing in it is ever run.

    Args:
        path: the file.
        key: where the weights lie in the file ("model", "state.ema"); None looks for them.

    Raises:
        ValueError: for anything else, with the reason and what to do.
    """
    if not path.is_file():
        what = "a folder, not a file" if path.is_dir() else "no file" if path.exists() else "not there"
        raise ValueError(f"{path} is {what}; --model takes a safetensors file or a torch state dict")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} can't be read: {error.strerror}") from None
    if not data:
        raise ValueError(f"{path} is empty")
    metadata = None
    if data[8:9] == b"{":  # a safetensors file: eight bytes of a length, then JSON
        kind, content, metadata = "safetensors", *_load_safetensors(path, data)
    else:
        kind, content = "torch", _load_torch(path, data)
    place, others, inside = _choose(path, content, key)
    return Checkpoint(kind, content, place, others, hashlib.sha256(data).hexdigest(), len(data), metadata, inside)


def _load_safetensors(path: Path, data: bytes) -> tuple[dict[str, Tensor], dict[str, str] | None]:
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return tensors, header.get("__metadata__")
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} begins like a safetensors file but can't be read ({error}); is it cut off?") from None


def _load_torch(path: Path, data: bytes) -> Any:
    if data.startswith(b"\x93NUMPY"):
        raise ValueError(f"{path} is a NumPy array; {ADVICE}")
    reading = Reading()
    try:
        with warnings.catch_warnings(action="ignore"), safe_globals(reading.names()):  # what can't be read raises
            return reading.finished(torch.load(io.BytesIO(data), map_location="cpu", weights_only=True))
    except (pickle.UnpicklingError, NotData) as error:
        if found := str(error) if isinstance(error, NotData) else _object_in(str(error)):
            raise ValueError(
                f"{path} holds a Python object ({found}): loading it could run code, so it was not "
                f"loaded. In your own code, {ADVICE}"
            ) from None
        what = "no safetensors file and no torch file"
        if zipfile.is_zipfile(io.BytesIO(data)):
            what = "a torch file in a form that can't be read safely: saved with a pickle_protocol of its own, perhaps"
        raise ValueError(f"{path} is {what}; {ADVICE}") from None
    except Exception as error:  # damaged bytes can make the reader raise anything
        raise ValueError(f"{path} is no torch file that can be read: {_kind_of(data, error)}; {ADVICE}") from None


def _object_in(message: str) -> str:
    """The name of the object that torch refused, "" where it refused something else."""
    found = re.search(r"GLOBAL (\S+)|but got <class '([\w.]+)'>", message)
    return (found[1] or found[2]) if found else ""


def _kind_of(data: bytes, error: Exception) -> str:
    """What a file is that torch can't read, in our own words: torch's advise to load it without a check."""
    names: list[str] = []
    with suppress(zipfile.BadZipFile):
        names = zipfile.ZipFile(io.BytesIO(data)).namelist()
    if any(name.endswith(("/constants.pkl", "/data.pkl")) and "/code/" in "".join(names) for name in names):
        return "it is a TorchScript archive"
    if any(name.endswith(".npy") for name in names):
        return "it is an archive of NumPy arrays"
    if names and not any(name.endswith("/data.pkl") for name in names):
        return "it is an archive without a torch.save in it"
    return f"it is damaged, cut off, or of another kind ({type(error).__name__})"


def _choose(path: Path, content: Any, key: str | None) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Where the weights lie, where further sets lie, and what is left of the key for the names of the weights."""
    places = list(_places(content))
    if not places:
        what = f"a {type(content).__name__}"
        if isinstance(content, Mapping):
            what += f" with {', '.join(map(str, list(content)[:5])) or 'nothing in it'}"
        raise ValueError(f"{path} holds no weights of convolutions, it is {what}; {ADVICE}")
    names = [".".join(place) for place in places]
    inside = ""
    if key is not None:
        tails = {name: key.removeprefix(name).removeprefix(".") for name in names if _within(key, name)}
        held = [name for name, tail in tails.items() if not tail or _has(_at(content, places[names.index(name)]), tail)]
        if not held:
            raise ValueError(
                f"{path} has no weights under --key {key!r}; it has them {_said(names)}"
                + ("; leave --key out" if names == [""] else "")
            )
        chosen, inside = names.index(held[0]), tails[held[0]]
    else:
        ranks = [PREFERRED.index(p[-1]) if p and p[-1] in PREFERRED else len(PREFERRED) for p in places]
        chosen = ranks.index(min(ranks))
    return places[chosen], tuple(name for index, name in enumerate(names) if index != chosen), inside


def _within(key: str, name: str) -> bool:
    return not name or f"{key}.".startswith(f"{name}.")


def _has(state: Mapping[str, Any], prefix: str) -> bool:
    return any(isinstance(name, str) and name.startswith(f"{prefix}.") for name in state)


def _said(names: list[str]) -> str:
    return "at its top" if names == [""] else f"under {', '.join(names)}"


def _places(content: Any, place: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every mapping in the file that holds a convolution's weight by its name; images, too, have four dimensions."""
    if not isinstance(content, dict) or len(place) > DEPTH:
        return
    named = [(name, value) for name, value in content.items() if isinstance(name, str)]
    if any(isinstance(value, Tensor) and value.ndim == 4 and "weight" in name for name, value in named):
        yield place
        return
    for name, value in named:
        yield from _places(value, (*place, name))


def _at(content: Any, place: tuple[str, ...]) -> Any:
    for name in place:
        content = content[name]
    return content


def _replaced(content: Any, place: tuple[str, ...], state: Any) -> Any:
    """A copy of the nested dicts along the way, the rest shared."""
    if not place:
        return state
    twin = copy.copy(content)
    twin[place[0]] = _replaced(content[place[0]], place[1:], state)
    return twin
