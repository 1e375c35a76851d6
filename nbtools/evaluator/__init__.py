"""The evaluator's wing: it holds the test set and the trigger, measures, and has no say in anything."""
