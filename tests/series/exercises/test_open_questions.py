"""What is expected of the exercises of notebook 13."""

import pandas as pd
import pytest

from nbtools.series import checks
from nbtools.series.exercises import open_questions


def test_a_stages_share_is_that_of_all_its_layers_together(capsys: pytest.CaptureFixture[str]) -> None:
    moved = "times its even share"
    placed = pd.DataFrame(
        [("plain", "layer1.0.conv1", 3.0, 6.0), ("plain", "layer1.0.conv1", 0.0, 2.0),
         ("plain", "layer1.0.conv2", 1.0, 2.0), ("plain", "conv1", 0.0, 5.0),
         ("hiding", "layer1.0.conv1", 2.0, 9.0), ("hiding", "layer1.0.conv2", 2.1, 1.0), ("hiding", "conv1", 4.0, 1.0)],
        columns=["model", "layer", "height", moved],
    )  # fmt: skip
    open_questions.hidden_by_stage({"layer1": 60.0 - 10.0, "conv1": 0.0 - 100.0}, placed, 2.0)
    open_questions.hidden_by_stage({"layer1": 50.0, "conv1": 0.0}, placed, 2.0)
    first, second = capsys.readouterr().out.splitlines()
    assert first == checks.RIGHT and second.startswith(checks.NOT_YET)
