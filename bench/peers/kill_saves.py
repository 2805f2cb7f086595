"""Counts what kill -9 at a random moment of a save leaves of the peers' checkpoints: kill_saves.py torch|accelerate [--kills 200] [--dir DIR]

A child saves the same state over and over, each time one value larger, into the place that users name (one file, one directory), as the peers' own
examples do. It is killed at a random moment; then the checkpoint is loaded. unloadable: loading raises. mixed: tensors of two saves.
Only the process is killed, not the machine: what the page cache holds stays. One JSON line at the end.
"""
import argparse
import json
import os
import random
import shutil
import signal
import tempfile
import time

import common  # noqa: F401  a quiet environment
import torch


def state_of(model, optimizer, value):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
            if optimizer:
                optimizer.state[parameter]["exp_avg"].fill_(value)


def tensors_of(path):
    """Every saved value that tells the save it came from."""
    if os.path.isfile(path):
        return [t for t in torch.load(path, weights_only=True).values()]
    from safetensors.torch import load_file
    optimizer = torch.load(f"{path}/optimizer.bin", weights_only=True)
    for name in os.listdir(path):  # everything else must load as well
        if name.endswith(".pkl"):
            torch.load(f"{path}/{name}", weights_only=False)
    return list(load_file(f"{path}/model.safetensors").values()) + [s["exp_avg"] for s in optimizer["state"].values()]


def make(what):
    torch.set_num_threads(1)
    model = torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(4)])
    if what == "torch":
        return model, None, lambda path: torch.save(model.state_dict(), path)
    from accelerate import Accelerator
    accelerator = Accelerator(cpu=True)
    optimizer = torch.optim.AdamW(model.parameters())
    model, optimizer = accelerator.prepare(model, optimizer)
    model(torch.zeros(1, 256)).sum().backward()
    optimizer.step()
    return model, optimizer, accelerator.save_state


def child(what, path, value, out):
    model, optimizer, save = make(what)
    inner = getattr(optimizer, "optimizer", optimizer)
    while True:
        state_of(model, inner, float(value))
        save(path)
        os.write(out, b".")
        value += 1


def main():
    options = argparse.ArgumentParser()
    options.add_argument("what", choices=["torch", "accelerate"])
    options.add_argument("--kills", type=int, default=200)
    options.add_argument("--dir", default=None)
    options = options.parse_args()
    if options.what == "accelerate":
        import accelerate  # noqa: F401  once, before the children
        import safetensors.torch  # noqa: F401
    draw, root = random.Random(7), tempfile.mkdtemp(dir=options.dir)
    path = os.path.join(root, "checkpoint.pt" if options.what == "torch" else "checkpoint")
    counts = dict(unloadable=0, mixed=0, whole=0)
    reasons = {}
    for kill in range(options.kills):
        read, write = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                child(options.what, path, 1000 * kill, write)
            finally:
                os._exit(1)
        os.close(write)
        os.read(read, 1)  # one save is whole; the kill falls into a later one
        begin = time.monotonic()
        os.read(read, 1)
        time.sleep(draw.random() * 3 * (time.monotonic() - begin))
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(read)
        try:
            values = {v for tensor in tensors_of(path) for v in tensor.unique().tolist()}
            counts["whole" if len(values) == 1 else "mixed"] += 1
        except Exception as error:
            counts["unloadable"] += 1
            reasons[type(error).__name__] = reasons.get(type(error).__name__, 0) + 1
        shutil.rmtree(path, ignore_errors=True)
        if os.path.exists(path):
            os.remove(path)
    shutil.rmtree(root)
    print(json.dumps(dict(what=options.what, kills=options.kills, **counts, reasons=reasons)))


if __name__ == "__main__":
    main()
