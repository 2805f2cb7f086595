"""GB/s of a save of 1.5 GB of state (125 weights of 1000x1000 and two moments of each) by 2 ranks, made durable: every file and directory is
fsynced afterwards, within the time, where the peer does not do it itself.

usage: checkpoint.py torch|dcp|accelerate|deepspeed [--runs 3] [--dir DIR]     Prints {"save_gb_s"}.
torch: rank 0 saves one dictionary; dcp: tensors sharded over both; accelerate: save_state under DDP, rank 0 writes; deepspeed: ZeRO-2, both write.
"""
import argparse
import os
import shutil
import time

import common

TENSORS = 125


def make_durable(path):
    for folder, _, names in os.walk(path):
        for name in [*names, "."]:
            fd = os.open(os.path.join(folder, name), os.O_RDONLY)
            os.fsync(fd)
            os.close(fd)


def saver(what, torch):
    """A function that saves into a directory."""
    if what == "torch":
        import torch.distributed as dist
        state = {f"{kind}.{i}": torch.randn(1000, 1000) for kind in ("weight", "exp_avg", "exp_avg_sq") for i in range(TENSORS)} if dist.get_rank() == 0 else None
        return lambda path: torch.save(state, f"{path}/checkpoint.pt") if state else None
    if what == "dcp":
        import torch.distributed.checkpoint as dcp
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.tensor import DTensor, Shard
        mesh = init_device_mesh("cpu", (2,))
        state = {f"{kind}.{i}": DTensor.from_local(torch.randn(500, 1000), mesh, [Shard(0)])
                 for kind in ("weight", "exp_avg", "exp_avg_sq") for i in range(TENSORS)}
        return lambda path: dcp.save(state, checkpoint_id=path)
    model = torch.nn.Sequential(*[torch.nn.Linear(1000, 1000, bias=False) for _ in range(TENSORS)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    if what == "accelerate":
        from accelerate import Accelerator
        accelerator = Accelerator(cpu=True)
        model, optimizer = accelerator.prepare(model, optimizer)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        return accelerator.save_state
    import deepspeed
    config = {"train_micro_batch_size_per_gpu": 1, "train_batch_size": 2, "zero_optimization": {"stage": 2}, "zero_allow_untested_optimizer": True,
              "steps_per_print": 10**9}
    engine, *_ = deepspeed.initialize(model=model, model_parameters=list(model.parameters()), dist_init_required=False, optimizer=optimizer, config=config)
    engine.backward(engine(torch.randn(1, 1000)).square().mean())
    engine.step()
    return lambda path: engine.save_checkpoint(path, tag="t")


def rank_main(options):
    rank = common.start_rank()
    import torch
    import torch.distributed as dist
    torch.set_num_threads(1)
    save, times, written = saver(options.what, torch), [], 0
    for run in range(options.runs):
        path = f"{options.dir}/{run}"
        os.makedirs(path, exist_ok=True)
        dist.barrier()
        begin = time.perf_counter()
        save(path)
        dist.barrier()
        if rank == 0:
            make_durable(path)
        times.append(time.perf_counter() - begin)
        if rank == 0:
            written = sum(os.path.getsize(os.path.join(folder, name)) for folder, _, names in os.walk(path) for name in names)
            shutil.rmtree(path)
        dist.barrier()
    common.finish({"save_gb_s": written / common.median(times) / 1e9})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["torch", "dcp", "accelerate", "deepspeed"])
    parser.add_argument("--runs", type=int, default=3)
    results = common.run_in_directory(parser, rank_main)
    common.emit(save_gb_s=results[0]["save_gb_s"])
