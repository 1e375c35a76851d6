"""What every test stands on: no network, here and in child processes, and one cache for the whole session."""

import os
import runpy
from pathlib import Path

import pytest
import torch

OFFLINE = Path(__file__).parent / "offline"
ROOT = Path(__file__).parent.parent

# Child processes, notebook kernels among them, import sitecustomize from PYTHONPATH; this process is past that.
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(OFFLINE), os.environ.get("PYTHONPATH")]))
runpy.run_path(str(OFFLINE / "sitecustomize.py"))


@pytest.fixture(scope="session")
def shared_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that starts empty and that the session's slow tests share: a model is trained once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """What a test draws without a generator of its own does not depend on the tests before it."""
    torch.manual_seed(0)


@pytest.fixture
def device() -> torch.device:
    """The GPU where there is one, else the CPU: a test that takes it runs on both kinds of machine."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
