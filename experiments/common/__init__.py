"""What several programs share: configuration, a run, recipes, files, timing."""
