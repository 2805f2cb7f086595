"""Makes accelerate_loaders.json beside it: what torch 2.11 and Accelerate 1.15 give for streams, dispatched batches, batch samplers
and weighted samplers. Ranks are processes over gloo.

usage: make.py            (in bench/setup_peers' environment; about two minutes)
"""
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile

os.environ.update(OMP_NUM_THREADS="1", CUDA_VISIBLE_DEVICES="", GLOO_SOCKET_IFNAME="lo", PYTHONWARNINGS="ignore")
HERE = pathlib.Path(__file__).resolve().parent
LENGTHS = [1, 2, 3, 5, 7, 8, 11, 12, 16, 17, 23, 24, 25]


def cases(world):
    """Everything that one number of ranks is asked for."""
    for kind in ("map", "iterable"):
        for dispatch in (True, False):
            if kind == "map" and not dispatch:
                continue  # of e_sharding
            for split in (False, True):
                for drop_last in (False, True):
                    for n in LENGTHS:
                        for batch_size in ((4, 12) if split else (1, 2, 4)):
                            total = batch_size if split else batch_size * world
                            if dispatch and drop_last and n < total:
                                continue  # Accelerate fails on an epoch without batches
                            if batch_size % world == 0 or not split:
                                yield dict(kind=kind, n=n, batch_size=batch_size, dispatch=dispatch, split=split, drop_last=drop_last)
    for n in LENGTHS:  # a batch sampler that sorts its batches' indices downwards
        for split in (False, True):
            for even in (True, False):
                if even or not split:
                    yield dict(kind="batch_sampler", n=n, batch_size=12 if split else 3, dispatch=False, split=split, drop_last=False, even=even)


def rank_main():
    import torch
    from accelerate import Accelerator
    from accelerate.utils import DataLoaderConfiguration
    from torch.utils.data import BatchSampler, DataLoader, IterableDataset

    class Stream(IterableDataset):
        def __init__(self, n):
            self.n = n

        def __iter__(self):
            return iter(range(self.n))

    class Downwards(BatchSampler):
        def __iter__(self):
            return (sorted(batch, reverse=True) for batch in super().__iter__())

    torch.set_num_threads(1)
    world, out = int(os.environ["WORLD_SIZE"]), []
    accelerator = Accelerator(cpu=True)
    for case in cases(world):
        config = DataLoaderConfiguration(split_batches=case["split"], dispatch_batches=case["dispatch"], even_batches=case.get("even", True))
        accelerator.dataloader_config = config
        if case["kind"] == "batch_sampler":
            loader = DataLoader(range(case["n"]), batch_sampler=Downwards(range(case["n"]), case["batch_size"], case["drop_last"]))
        else:
            data = Stream(case["n"]) if case["kind"] == "iterable" else range(case["n"])
            loader = DataLoader(data, batch_size=case["batch_size"], drop_last=case["drop_last"])
        prepared = accelerator.prepare_data_loader(loader)
        batches, gathered, remainder = [], [], None
        for batch in prepared:
            batches.append(batch.tolist())
            if case["dispatch"] and case["n"] >= world or case["kind"] == "iterable" and not case["dispatch"]:
                gathered.append(accelerator.gather_for_metrics(batch).tolist())
            remainder = prepared.remainder
        out.append(dict(case, batches=batches, gathered=gathered, remainder=remainder))
        accelerator._dataloaders.clear()
    with open(os.environ["OUT"] + "/" + os.environ["RANK"], "w") as file:
        json.dump(out, file)


def run(world):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = str(s.getsockname()[1])
    with tempfile.TemporaryDirectory() as out:
        ranks = [subprocess.Popen([sys.executable, __file__], env=dict(os.environ, RANK=str(r), LOCAL_RANK=str(r), WORLD_SIZE=str(world), OUT=out,
                                                                       LOCAL_WORLD_SIZE=str(world), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)) for r in range(world)]
        if any([process.wait() for process in ranks]):
            sys.exit("a rank failed")
        ranks = [json.load(open(f"{out}/{r}")) for r in range(world)]
    merged = []
    for case in zip(*ranks):
        merged.append({**{k: v for k, v in case[0].items() if k not in ("batches",)}, "ranks": [rank["batches"] for rank in case]})
    return merged


def samplers():
    import torch
    from torch.utils.data import RandomSampler, WeightedRandomSampler
    generator = lambda seed: torch.Generator().manual_seed(seed)
    weighted, random = [], []
    for weights in ([0.1, 0.9, 0.4, 0.7, 3.0, 0.6], [0.0, 1.0, 0.0, 2.0, 5.0], [1.0] * 40):
        for replacement in (True, False):
            for seed in (0, 7, 2**40 + 3):
                count = 17 if replacement else min(3, sum(w > 0 for w in weights))
                sampler = WeightedRandomSampler(weights, count, replacement, generator=generator(seed))
                weighted.append(dict(weights=weights, num_samples=count, replacement=replacement, seed=seed, epochs=[list(sampler) for _ in range(3)]))
    for n, count, replacement in ((7, 7, True), (7, 70, True), (40, 64, True), (7, 20, False), (7, 3, False), (7, 14, False)):
        sampler = RandomSampler(range(n), replacement=replacement, num_samples=count, generator=generator(5))
        random.append(dict(n=n, num_samples=count, replacement=replacement, seed=5, epochs=[list(sampler) for _ in range(3)]))
    return weighted, random


if __name__ == "__main__":
    if "OUT" in os.environ:
        rank_main()
        sys.exit()
    import accelerate
    import torch
    weighted, random = samplers()
    result = dict(versions=dict(torch=torch.__version__, accelerate=accelerate.__version__), tolerance="exact",
                  what="ranks[r] = batches of sample numbers that rank r is given; gathered = gather_for_metrics, where it was called",
                  weighted_random_sampler=weighted, random_sampler=random, worlds={str(world): run(world) for world in (2, 3, 4)})
    (HERE / "accelerate_loaders.json").write_text(json.dumps(result, separators=(",", ":")) + "\n")
