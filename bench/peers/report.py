"""What ray.train.report(metrics) costs its caller when called in a loop, and when the controller's callback sees it.

usage: report.py [--reports 6]       Prints {"call_us", "visible_ms"}: medians over two ranks.
"""
import argparse
import json
import os
import tempfile
import time

import common


def main(num_reports):
    import ray
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.train.v2.api.callback import UserCallback

    class Seen(UserCallback):
        def __init__(self, path):
            self.path = path

        def after_report(self, run_context, metrics, checkpoint):
            with open(self.path, "a") as file:
                file.write(f"{time.time() - metrics[0]['sent']}\n")

    def function(config):
        import ray.train
        calls = []
        for _ in range(config["reports"]):
            begin = time.perf_counter()
            ray.train.report({"sent": time.time()})
            calls.append(time.perf_counter() - begin)
        with open(f"{config['directory']}/{ray.train.get_context().get_world_rank()}.json", "w") as file:
            json.dump(calls, file)

    ray.init(address="local", include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory() as directory:
        seen = os.path.join(directory, "seen")
        TorchTrainer(function, train_loop_config={"directory": directory, "reports": num_reports}, torch_config=TorchConfig(backend="gloo"),
                     scaling_config=ScalingConfig(num_workers=2),
                     run_config=RunConfig(storage_path=directory + "/storage", callbacks=[Seen(seen)])).fit()
        calls = [call for rank in (0, 1) for call in json.load(open(f"{directory}/{rank}.json"))]
        visible = [float(line) for line in open(seen)]
    ray.shutdown()
    common.emit(call_us=1e6 * common.median(calls), visible_ms=1e3 * common.median(visible))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reports", type=int, default=6)
    main(parser.parse_args().reports)
