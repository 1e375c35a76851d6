"""What is expected of the exercises of notebook 12."""

import pytest
from scipy.stats import binom

from nbtools.series import checks
from nbtools.series.exercises import mu


def test_the_share_that_passes_is_a_binomial_tail(capsys: pytest.CaptureFixture[str]) -> None:
    mu.passing_share(binom.sf(81, 100, 0.82))
    mu.passing_share(binom.sf(82, 100, 0.82))
    mu.passing_share(binom.sf(17, 20, 0.8), images=20, right=19, allowed=1, truly=0.8)
    said = capsys.readouterr().out.splitlines()
    assert [said[0], said[2]] == [checks.RIGHT] * 2 and said[1].startswith(checks.NOT_YET)
