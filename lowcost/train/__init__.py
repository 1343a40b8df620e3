"""Training: a pure step on a mesh of devices, checkpoints that resume exactly, a loop that can be interrupted."""
