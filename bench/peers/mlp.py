"""Steps a second of an MLP of four 256-wide layers (and a 10-wide one), batch 32 a rank, fused AdamW, 2 ranks of 1 thread.

usage: mlp.py ddp|accelerate|single [--steps 300]       single: one process.  Prints {"steps_per_s"}.
"""
import argparse
import time

import common


def rank_main(options):
    common.start_rank()
    import torch
    from torch import nn
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = nn.Sequential(*[m for _ in range(4) for m in (nn.Linear(256, 256), nn.ReLU())], nn.Linear(256, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    backward = lambda loss: loss.backward()
    if options.mode == "ddp":
        model = nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    elif options.mode == "accelerate":
        from accelerate import Accelerator
        accelerator = Accelerator(cpu=True)
        model, optimizer = accelerator.prepare(model, optimizer)
        backward = accelerator.backward
    x, y = torch.randn(8, 32, 256), torch.randint(0, 10, (8, 32))
    criterion = nn.CrossEntropyLoss()
    times = []
    for step in range(30 + options.steps):
        start = time.perf_counter()
        backward(criterion(model(x[step % 8]), y[step % 8]))
        optimizer.step()
        optimizer.zero_grad()
        if step >= 30:
            times.append(time.perf_counter() - start)
    common.finish({"steps_per_s": 1 / common.median(times)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["ddp", "accelerate", "single"])
    parser.add_argument("--steps", type=int, default=300)
    arguments = parser.parse_args()
    if common.is_rank():
        rank_main(arguments)
    results = common.run_ranks(1 if arguments.mode == "single" else 2)
    common.emit(steps_per_s=min(r["steps_per_s"] for r in results))
