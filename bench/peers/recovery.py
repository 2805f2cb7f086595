"""From a fault in rank 1 of two (SIGKILL, or an exception) to the next completed step on both, with steps of 50 ms.

usage: recovery.py ray|torchrun kill|throw    Prints {"resumed_s", "entered_s", "steps_lost"}: seconds since the fault.
The loop saves its step number every 20 steps, which costs the peers nothing: only their restart is measured.
"""
import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import common

EVERY, FAULT_STEP, AFTER = 20, 30, 10


def log(directory, **event):
    with open(os.path.join(directory, f"events.{os.getpid()}"), "a") as file:
        file.write(json.dumps({"t": time.time(), **event}) + "\n")


def loop(directory, rank, attempt, first, fault, save):
    import torch
    import torch.distributed as dist
    value = torch.ones(1024)
    for step in range(first, first + 1_000_000):
        time.sleep(0.05)
        if attempt == 0 and rank == 1 and step == FAULT_STEP:
            log(directory, event="fault", step=step)
            if fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            raise RuntimeError("injected")
        dist.all_reduce(value)
        if step == first and attempt:
            log(directory, event="first_step", step=step)
        if step % EVERY == EVERY - 1:
            save(step + 1)
        if attempt and step == first + AFTER:
            return


def worker(directory, fault):
    import torch.distributed as dist
    rank, attempt = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    if attempt:
        log(directory, event="entered")
    dist.init_process_group("gloo")
    saved = os.path.join(directory, "saved")
    first = int(open(saved).read()) if os.path.exists(saved) else 0

    def save(step):
        if rank == 0:
            with open(saved + ".tmp", "w") as file:
                file.write(str(step))
            os.replace(saved + ".tmp", saved)

    loop(directory, rank, attempt, first, fault, save)


def torchrun(directory, fault, rendezvous):
    launcher = os.path.join(os.path.dirname(sys.executable), "torchrun")
    subprocess.run([launcher, *rendezvous, "--nproc-per-node=2", "--max-restarts=1", __file__, "torchrun", fault,
                    "--worker", directory], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=35)


def ray_function(config):
    import ray.train
    from ray.train import Checkpoint
    directory, rank = config["directory"], ray.train.get_context().get_world_rank()
    attempt = 1 if any('"fault"' in open(os.path.join(directory, name)).read() for name in os.listdir(directory) if name.startswith("events.")) else 0
    if attempt:
        log(directory, event="entered")
    first, checkpoint = 0, ray.train.get_checkpoint()
    if checkpoint:
        with checkpoint.as_directory() as path:
            first = int(open(os.path.join(path, "step")).read())

    def save(step):
        path = tempfile.mkdtemp()
        if rank == 0:
            with open(os.path.join(path, "step"), "w") as file:
                file.write(str(step))
        ray.train.report({"step": step}, checkpoint=Checkpoint.from_directory(path) if rank == 0 else None)

    loop(directory, rank, attempt, first, config["fault"], save)


def ray_train(directory, fault):
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    TorchTrainer(ray_function, train_loop_config={"directory": directory, "fault": fault}, torch_config=TorchConfig(backend="gloo"),
                 scaling_config=ScalingConfig(num_workers=2),
                 run_config=RunConfig(storage_path=directory + "/storage", failure_config=FailureConfig(max_failures=1))).fit()
    ray.shutdown()


def times(system, fault, rendezvous):
    """One run's figures; None when the peer did not come back."""
    with tempfile.TemporaryDirectory() as scratch:
        try:
            torchrun(scratch, fault, rendezvous) if system == "torchrun" else ray_train(scratch, fault)
        except subprocess.SubprocessError:
            return None
        events = [json.loads(line) for name in os.listdir(scratch) if name.startswith("events.") for line in open(os.path.join(scratch, name))]
    fault = next(event for event in events if event["event"] == "fault")
    entered = max(event["t"] for event in events if event["event"] == "entered")
    firsts = [event for event in events if event["event"] == "first_step"]
    return dict(resumed_s=max(event["t"] for event in firsts) - fault["t"], entered_s=entered - fault["t"], steps_lost=fault["step"] - firsts[0]["step"])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=["ray", "torchrun"])
    parser.add_argument("fault", choices=["kill", "throw"])
    parser.add_argument("--worker", metavar="DIRECTORY", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(arguments.worker, arguments.fault)
        sys.exit(0)
    # A restart of torchrun's at times finds the old rendezvous: its processes then crash, or hang until the time limit.
    for failed in range(4):
        rendezvous = ["--standalone"] if failed % 2 else [f"--master-port={common.free_port()}"]
        if figures := times(arguments.system, arguments.fault, rendezvous):
            common.emit(**figures, runs_that_never_resumed=failed)
            sys.exit(0)
    sys.exit("the peer never resumed in 4 runs")
