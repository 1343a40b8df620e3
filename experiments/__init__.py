"""Programs: the only place where networks, data and training meet. Run them with `python -m experiments.NAME`."""
