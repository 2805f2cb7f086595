"""What an asynchronous save of 1.5 GB by 2 ranks costs a loop: checkpoint_async.py dcp [--how thread|process] [--runs 3] [--dir DIR]

DCP's async_save of tensors sharded over both ranks, while each rank multiplies small matrices. Prints {"wait_s", "slowdown", "save_s"}: how long the
call takes, how much longer steps take until the save is durable, and when that is; the slower rank's.
"""
import argparse
import shutil
import time

import common


def rank_main(options):
    rank = common.start_rank()
    import torch
    import torch.distributed as dist
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict_saver import AsyncCheckpointerType
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Shard
    torch.set_num_threads(1)
    mesh = init_device_mesh("cpu", (2,))
    state = {f"{kind}.{i}": DTensor.from_local(torch.randn(500, 1000), mesh, [Shard(0)]) for kind in ("weight", "exp_avg", "exp_avg_sq") for i in range(125)}
    square = torch.randn(384, 384)
    how = AsyncCheckpointerType.PROCESS if options.how == "process" else AsyncCheckpointerType.THREAD

    def step():
        begin = time.perf_counter()
        for _ in range(10):
            square @ square
        return time.perf_counter() - begin

    waits, slowdowns, saves = [], [], []
    for run in range(options.runs + 1):
        quiet = common.median(step() for _ in range(200))
        dist.barrier()
        begin = time.perf_counter()
        save = dcp.async_save(state, checkpoint_id=f"{options.dir}/{run}", async_checkpointer_type=how)
        waited = time.perf_counter() - begin
        busy = [step()]
        while not save.done():
            busy.append(step())
        save.result()
        took = time.perf_counter() - begin
        dist.barrier()
        if rank == 0:
            shutil.rmtree(f"{options.dir}/{run}")
        if run == 0:  # processes and memory were made
            continue
        waits.append(waited)
        saves.append(took)
        slowdowns.append(sum(busy) / len(busy) / quiet)
    common.finish({"wait_s": common.median(waits), "slowdown": common.median(slowdowns), "save_s": common.median(saves)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["dcp"])
    parser.add_argument("--how", choices=["thread", "process"], default="thread")
    parser.add_argument("--runs", type=int, default=3)
    results = common.run_in_directory(parser, rank_main)
    common.emit(**{key: max(result[key] for result in results) for key in results[0]})
