"""The notebooks as files, and what only they use: run, execute, stamp, check; plots and exercise checks."""
