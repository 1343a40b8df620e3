"""Trains networks by pure steps on a mesh of devices, stops on request, and resumes exactly from checkpoints."""

from lowcost.lazy import attributes

_SUBMODULES = ["calibration", "checkpoint", "distillation", "feed", "interruption", "loop", "losses", "manifest"]
_SUBMODULES += ["memory", "mesh", "metrics_log", "overlap", "processes", "state", "step"]
__getattr__, __dir__ = attributes(__name__, (), (), _SUBMODULES)
