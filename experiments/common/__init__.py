"""Holds the modules that several programs share: entry, configuration, runs and training, recipes, files, timing."""
