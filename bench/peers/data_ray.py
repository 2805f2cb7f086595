"""Batches of tensors from Parquet on two training workers by Ray Data: the peer of dataset_bench --case iter_batches.

usage: data_ray.py [--rows 100000] [--epochs 3]     last line: {"rows_s": ..., "first_batch_s": ...}

Eight files, rows of 64 int64 and a label, batch 32, `get_dataset_shard(...).iter_torch_batches`. Rates are medians over epochs of
all rows over the slower worker's time; the first batch is counted from the worker's own `for` on, so Ray's start is not in it.
"""
import argparse
import json
import os
import statistics
import tempfile

import common  # noqa: F401  sets the environment before Ray is imported


def write_files(directory, rows, files=8, width=64):
    import numpy
    import pyarrow
    import pyarrow.parquet
    draw = numpy.random.default_rng(0)
    for number in range(files):
        count = rows * (number + 1) // files - rows * number // files
        ids = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(draw.integers(0, 30000, count * width, dtype=numpy.int64)), width)
        table = pyarrow.table({"ids": ids, "label": numpy.arange(count) % 2})
        pyarrow.parquet.write_table(table, os.path.join(directory, f"{number}.parquet"))


def read_epochs(config):
    import time
    import ray.train
    shard = ray.train.get_dataset_shard("train")
    epochs = []
    for _ in range(config["epochs"]):
        began, rows, first = time.perf_counter(), 0, None
        for batch in shard.iter_torch_batches(batch_size=32):
            if first is None:
                first = time.perf_counter() - began
            rows += len(batch["label"])
        epochs.append({"rows": rows, "seconds": time.perf_counter() - began, "first": first})
    rank = ray.train.get_context().get_world_rank()
    with open(os.path.join(config["out"], f"{rank}.json"), "w") as file:
        json.dump(epochs, file)


def main():
    options = argparse.ArgumentParser()
    options.add_argument("--rows", type=int, default=100_000)
    options.add_argument("--epochs", type=int, default=3)
    asked = options.parse_args()
    import ray
    import ray.data
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    with tempfile.TemporaryDirectory() as directory:
        data, out = os.path.join(directory, "data"), os.path.join(directory, "out")
        os.makedirs(data)
        os.makedirs(out)
        write_files(data, asked.rows)
        ray.init("local", log_to_driver=False, logging_level="ERROR", include_dashboard=False)
        ray.data.DataContext.get_current().enable_progress_bars = False
        TorchTrainer(read_epochs, train_loop_config={"out": out, "epochs": asked.epochs}, datasets={"train": ray.data.read_parquet(data)},
                     torch_config=TorchConfig(backend="gloo"), scaling_config=ScalingConfig(num_workers=2, resources_per_worker={"CPU": 0.5}),
                     run_config=RunConfig(storage_path=os.path.join(directory, "storage"))).fit()
        workers = [json.load(open(os.path.join(out, f"{rank}.json"))) for rank in (0, 1)]
        ray.shutdown()
    rates = [sum(w["rows"] for w in epoch) / max(w["seconds"] for w in epoch) for epoch in zip(*workers)]
    firsts = [max(w["first"] for w in epoch) for epoch in zip(*workers)]
    print(json.dumps({"rows_s": statistics.median(rates), "first_batch_s": statistics.median(firsts)}))


if __name__ == "__main__":
    main()
