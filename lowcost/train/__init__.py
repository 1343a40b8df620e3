"""Training: pure steps on a mesh of devices, a loop that stops on request, and checkpoints that resume exactly."""
