"""From the start of a job to the first line of the train function on both of two ranks.

usage: startup.py torchrun|ray       ray: from fit(), with ray.init() already done.  Prints {"first_line_s"}.
"""
import argparse
import os
import subprocess
import sys
import tempfile
import time

import common


def stamp(directory, rank):
    with open(os.path.join(directory, str(rank)), "w") as file:
        file.write(repr(time.time()))


def last_stamp(directory):
    return max(float(open(os.path.join(directory, str(rank))).read()) for rank in (0, 1))


def torchrun(directory):
    begin = time.time()
    launcher = os.path.join(os.path.dirname(sys.executable), "torchrun")
    subprocess.run([launcher, "--standalone", "--nproc-per-node=2", __file__, "torchrun", "--worker", directory], check=True,
                   stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return last_stamp(directory) - begin


def ray_function(config):
    first = time.time()
    import ray.train
    with open(os.path.join(config["directory"], str(ray.train.get_context().get_world_rank())), "w") as file:
        file.write(repr(first))


def ray_train(directory):
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    trainer = TorchTrainer(ray_function, train_loop_config={"directory": directory}, torch_config=TorchConfig(backend="gloo"),
                           scaling_config=ScalingConfig(num_workers=2), run_config=RunConfig(storage_path=directory + "/storage"))
    begin = time.time()
    trainer.fit()
    ray.shutdown()
    return last_stamp(directory) - begin


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["torchrun", "ray"])
    parser.add_argument("--worker", metavar="DIRECTORY", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        stamp(arguments.worker, int(os.environ["RANK"]))
        os._exit(0)
    with tempfile.TemporaryDirectory() as scratch:
        common.emit(first_line_s=(torchrun if arguments.mode == "torchrun" else ray_train)(scratch))
