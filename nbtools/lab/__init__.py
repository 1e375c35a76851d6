"""Where the three parties meet: models of a configuration, defences on them, comparisons, sweeps."""
