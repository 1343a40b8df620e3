"""Training: pure steps on a mesh of devices, a loop that stops on request, and checkpoints that resume exactly."""

from lowcost.lazy import attributes

_SUBMODULES = ["checkpoint", "distillation", "feed", "interruption", "loop", "losses", "mesh", "metrics_log", "overlap"]
_SUBMODULES += ["processes", "state", "step"]
__getattr__, __dir__ = attributes(__name__, (), (), _SUBMODULES)
