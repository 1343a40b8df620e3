"""The launch files are well formed, and their flags are those of the program."""

import shlex
import subprocess
from pathlib import Path

import tyro
import yaml

from experiments.common.config import TrainConfig

LAUNCH = Path(__file__).parents[2] / "experiments" / "launch"


def test_slurm():
    script = LAUNCH / "slurm.sh"
    subprocess.run(["bash", "-n", script], check=True)
    command = script.read_text().replace("\\\n", " ").splitlines()[-1]
    words = shlex.split(command)
    config = tyro.cli(TrainConfig, args=words[words.index("experiments.train") + 1 :])
    assert config.batch_size % 32 == 0
    assert config.cluster.num_processes is None  # JAX detects it


def test_kubernetes():
    service, job = yaml.safe_load_all((LAUNCH / "kubernetes.yaml").read_text())
    container = job["spec"]["template"]["spec"]["containers"][0]
    arguments = [x.replace("$(JOB_COMPLETION_INDEX)", "1") for x in container["command"][3:] + container["args"]]
    config = tyro.cli(TrainConfig, args=arguments)
    assert config.cluster.num_processes == job["spec"]["completions"] == job["spec"]["parallelism"]
    assert job["spec"]["completionMode"] == "Indexed"
    assert service["metadata"]["name"] == job["spec"]["template"]["spec"]["subdomain"]
    host, port = config.cluster.coordinator.split(":")
    assert host == f"{job['metadata']['name']}-0.{service['metadata']['name']}"
    assert container["ports"] == [{"containerPort": int(port)}]
