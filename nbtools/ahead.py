"""The models that a series will ask for, trained on an idle core from the start, while its notebooks run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from nbtools.settings import default_device, get_profile

Order = dict[str, Any]
"""Profile, width, epochs and seed of a run; attack ("none": clean), poison rate and target of a model."""


def orders(notebooks: Iterable[Mapping[str, Any]], profile: str) -> list[Order]:
    """What the notebooks will ask for, in the order of need, without the model that the first one trains itself.

    Args:
        notebooks: the parameters of each. Where one names an attack (a parameter "attack", "hard_attack", ...), it asks
            for that model and for a clean one.
        profile: the profile of those that name none.
    """
    asked: list[Order] = []
    for given in notebooks:
        run = {"profile": given.get("profile") or profile}
        run |= {name: given[name] for name in ("width", "epochs", "seed") if name in given}
        attacks = [value for name, value in given.items() if name.endswith("attack")]
        for attack in [*attacks[:1], *(["none"] if attacks else []), *attacks[1:]]:
            poisoned = {name: given[name] for name in ("poison_rate", "target") if name in given}
            order = run | {"attack": attack} | (poisoned if attack != "none" else {})
            if order not in asked:
                asked.append(order)
    return asked[1:]


@contextmanager
def training_ahead(asked: list[Order]) -> Iterator[None]:
    """While the context lasts, another process trains these models, one after the other; who needs one waits for it.

    Does nothing on a GPU, and where a training uses more than half of the cores. What had been trained when the context
    ends, however it ends, is kept.
    """
    threads = max((get_profile(order["profile"]).threads or sys.maxsize for order in asked), default=sys.maxsize)
    if default_device().type != "cpu" or (os.cpu_count() or 1) < 2 * threads:
        yield
        return
    command = [sys.executable, "-m", "nbtools.ahead", json.dumps(asked)]
    silent = subprocess.DEVNULL  # an order that can't be met is refused where its notebook asks again
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=silent, stderr=silent) as process:
        try:
            yield
        finally:
            process.kill()


def _end_with_parent() -> None:
    """Leave when the pipe from the process that asked is closed, however that process ended."""
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    from nbtools import experiments

    threading.Thread(target=_end_with_parent, daemon=True).start()
    for order in json.loads(sys.argv[1]):
        attack, poison_rate, target = (order.pop(name, None) for name in ("attack", "poison_rate", "target"))
        run = experiments.start(quiet=True, **order)
        if attack == "none":
            run.clean_model()
        else:
            run.model(attack, poison_rate, target)
