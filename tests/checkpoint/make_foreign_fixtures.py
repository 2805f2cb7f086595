#!/usr/bin/env python3
"""Writes tests/checkpoint/foreign/: small checkpoints of torch, Accelerate, DeepSpeed and torch.distributed.checkpoint, each
with a safetensors file of the tensors that must be read from it. The result is committed, so tests need no Python.

    PEERS=$(bench/setup_peers) && "$PEERS/bin/python" tests/checkpoint/make_foreign_fixtures.py [DIRECTORY]

TROUPE_TEST_FOREIGN=DIRECTORY lets the tests read what was just written there, by whatever versions of those libraries.

Expected tensors come from the live objects (DeepSpeed's: safe_get_full_fp32_param and safe_get_full_optimizer_state), not
from reading the files back. A dtype that safetensors lacks is stored as bytes (U8, one dimension more).
"""
import io
import os
import pathlib
import random
import shutil
import subprocess
import sys
import traceback

os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import torch
from safetensors.torch import save_file

HERE = pathlib.Path(__file__).resolve().parent
AS_BYTES = {torch.complex128, torch.complex32}


def expected(path, tensors):
    out = {}
    for name, t in tensors.items():
        t = t.detach().cpu().resolve_conj().clone().contiguous()
        if t.dtype in AS_BYTES:
            t = t.flatten().view(torch.uint8).reshape(*t.shape, -1)
        out[name] = t
    save_file(out, str(path))


class Net(torch.nn.Module):
    """Odd sizes, so that partitions need padding; a buffer, a frozen and a shared parameter."""

    def __init__(self, tied=True, scalars=True):
        super().__init__()
        self.embed = torch.nn.Embedding(7, 5)
        self.norm = torch.nn.BatchNorm1d(5) if scalars else torch.nn.LayerNorm(5)
        self.frozen = torch.nn.Linear(5, 3)
        self.out = torch.nn.Linear(5, 7)
        self.scale = torch.nn.Parameter(torch.tensor(1.5) if scalars else torch.tensor([1.5]))
        self.register_buffer("places", torch.arange(3))
        self.register_buffer("shift", torch.linspace(0, 1, 5))
        if tied:
            self.out.weight = self.embed.weight
        for p in self.frozen.parameters():
            p.requires_grad_(False)

    def forward(self, ids):
        x = self.norm(self.embed(ids))
        x = x + self.shift.to(x.dtype)
        return self.out(x + self.frozen(x).sum(-1, keepdim=True)) * self.scale


def step(net, optimizer, backward=None):
    ids = torch.tensor([0, 3, 6, 2, 1, 5])
    for _ in range(2):
        loss = torch.nn.functional.cross_entropy(net(ids), (ids + 1) % 7)
        (backward or (lambda v: v.backward()))(loss)
        optimizer.step()
        optimizer.zero_grad()


def torch_files(root):
    generator = torch.Generator().manual_seed(3)
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    tensors = {}
    for dtype in [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64,
                  torch.bool, torch.complex64, torch.complex128]:
        tensors[str(dtype)[6:]] = torch.randint(0, 2, (3, 5), generator=generator).to(dtype)
    for dtype in [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.float8_e4m3fn, torch.float8_e5m2,
                  torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu]:
        tensors[str(dtype)[6:]] = torch.randn(3, 5, generator=generator).abs().to(dtype)
    tensors |= {"transposed": base.t(), "rows": base[1:3], "columns": base[:, 2:5], "every_second": base.flatten()[::2],
                "scalar": torch.tensor(7.5), "empty": torch.empty(0, 3), "parameter": torch.nn.Parameter(base[0].clone())}
    root.mkdir(parents=True)
    torch.save(tensors, root / "dtypes.bin")
    expected(root / "dtypes.safetensors", tensors)
    nested = {"a": [base, (1, -2, 2**40, -(2**40), True, None)], "b": {"text": "häß", 5: 0.25, "list": [{"x": base[0]}]},
              "set": {1}, "size": torch.Size([2, 3]), "dtype": torch.bfloat16, "device": torch.device("cpu"), "big": 2**64 - 1,
              "array": np.arange(6, dtype=np.int32).reshape(2, 3), "number": np.float64(2.5), "bytes": b"\x00\xff"}
    torch.save(nested, root / "nested.pt")
    for protocol in (3, 4, 5):
        torch.save(nested, root / f"nested_protocol{protocol}.pt", pickle_protocol=protocol)
    torch.save({"w": base}, root / "old_format.bin", _use_new_zipfile_serialization=False)
    net = Net()
    torch.save(net.state_dict(), root / "module.bin")
    expected(root / "module.safetensors", net.state_dict())
    torch.jit.script(torch.nn.Linear(2, 2)).save(root / "script.pt")
    torch.save({"sparse": torch.eye(2).to_sparse()}, root / "sparse.bin")
    torch.save({"wide": torch.zeros(1).expand(4)}, root / "expanded.bin")


def sharded_bin(root):
    root.mkdir()
    from huggingface_hub import save_torch_state_dict
    torch.manual_seed(1)
    state = {f"layer.{i}.weight": torch.randn(20, 10) for i in range(5)}
    save_torch_state_dict(state, root, max_shard_size=1700, safe_serialization=False)
    expected(root / "expected", state)


def pretrained(root):
    """As transformers saves: safetensors in several files, tied weights once."""
    from transformers import LlamaConfig, LlamaForCausalLM
    torch.manual_seed(1)
    model = LlamaForCausalLM(LlamaConfig(vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4,
                                         num_key_value_heads=2, tie_word_embeddings=True))
    model.save_pretrained(root, max_shard_size="8KB")
    expected(root / "expected", {k: v for k, v in model.state_dict().items() if k != "lm_head.weight"})


def save_state(root, safe):
    from accelerate import Accelerator
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    accelerator = Accelerator(cpu=True)
    net = Net(tied=False)
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    net, optimizer, scheduler = accelerator.prepare(net, optimizer, scheduler)
    step(net, optimizer, accelerator.backward)
    scheduler.step()
    accelerator.save_state(str(root), safe_serialization=safe)
    state = {f"state.{i}.{k}": v for i, s in optimizer.state_dict()["state"].items() for k, v in s.items()}
    expected(root / "expected", {f"model/{k}": v for k, v in net.state_dict().items()} |
             {f"optimizer/{k}": v for k, v in state.items()} | {"random_states_0/torch_manual_seed": torch.get_rng_state()})


def moment(optimizer, p, key):
    """By DeepSpeed's own map of fragments; its safe_get_full_optimizer_state fails on some ranks in stages 1 and 2."""
    whole = torch.zeros(p.numel())
    mapping = p._hp_mapping
    if mapping is not None:
        at = mapping.hp_fragment.data_ptr()
        for flat in optimizer.single_partition_of_fp32_groups:
            if flat.data_ptr() <= at < flat.data_ptr() + 4 * flat.numel():
                here, there = mapping.lp_fragment_address, mapping.hp_fragment_address
                whole[here.start:here.start + here.numel] = optimizer.optimizer.state[flat][key][there.start:there.start + there.numel]
    torch.distributed.all_reduce(whole)
    return whole.reshape(p.shape)


def rank_deepspeed(root, stage, groups):
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
    torch.manual_seed(1)
    net = Net(scalars=False)  # DeepSpeed 0.19.8 cannot broadcast tensors without dimensions over Gloo
    trained = [p for p in net.parameters() if p.requires_grad]
    sets = [{"params": trained}] if groups == 1 else [{"params": trained[:2]}, {"params": trained[2:], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(sets, lr=1e-2)
    engine, optimizer, *_ = deepspeed.initialize(model=net, optimizer=optimizer, dist_init_required=False, config={
        "train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": True}, "zero_allow_untested_optimizer": True,
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0}, "steps_per_print": 10**9})
    step(engine, engine, engine.backward)
    engine.save_checkpoint(str(root), tag="t")
    want, buffers = {}, dict(net.named_buffers())
    for name, p in net.named_parameters():
        if p.requires_grad:
            want[f"model/{name}"] = safe_get_full_fp32_param(p)
            for key in ("exp_avg", "exp_avg_sq"):
                want[f"optimizer/{key}.{name}"] = safe_get_full_optimizer_state(p, key) if stage == 3 else moment(optimizer, p, key)
        else:
            with deepspeed.zero.GatheredParameters([p], enabled=stage == 3):
                want[f"model/{name}"] = p.detach().clone()
    want["model/out.weight"] = want["model/embed.weight"]
    want |= {f"model/{k}": v for k, v in buffers.items()}
    return want


def rank_dcp(root):
    import torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor
    torch.manual_seed(1)
    mesh = init_device_mesh("cpu", (2,))
    full = {"rows": torch.randn(5, 3), "columns": torch.randn(3, 7), "whole": torch.randn(4), "scalar": torch.tensor(3.0),
            "half": torch.randn(6, 2).bfloat16()}
    place = {"rows": Shard(0), "columns": Shard(1), "whole": Replicate(), "half": Shard(0)}
    state = {k: distribute_tensor(v, mesh, [place[k]]) if k in place else v for k, v in full.items()}
    dcp.save({"model": state, "step": 17, "note": {"lr": 0.5}}, checkpoint_id=str(root))
    return {f"model.{k}": v for k, v in full.items()}


def rank_fsdp(root):
    """Accelerate refuses FSDP on CPUs, so its own functions for writing are called with what they need of it."""
    from types import SimpleNamespace
    from accelerate import PartialState
    from accelerate.utils.fsdp_utils import save_fsdp_model, save_fsdp_optimizer
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import StateDictType, fully_shard
    torch.manual_seed(1)
    net = torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Linear(7, 3))
    fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-2)
    net(torch.ones(2, 5)).square().mean().backward()
    optimizer.step()
    PartialState(cpu=True)  # for their logger
    rank = torch.distributed.get_rank()
    accelerator = SimpleNamespace(process_index=rank, num_processes=2, is_main_process=rank == 0, is_fsdp2=True,
                                  wait_for_everyone=torch.distributed.barrier)
    plugin = SimpleNamespace(fsdp_version=2, state_dict_type=StateDictType.SHARDED_STATE_DICT, state_dict_config=None,
                             optim_state_dict_config=None)
    save_fsdp_model(plugin, accelerator, net, str(root))
    save_fsdp_optimizer(plugin, accelerator, optimizer, net, str(root))
    model, optim = get_state_dict(net, optimizer, options=StateDictOptions(full_state_dict=True))
    want = {f"model/{k}": v for k, v in model.items()}
    for name, state in optim["state"].items():
        want |= {f"optimizer/{key}.{name}": v for key, v in state.items()}
    return want


def rank_main(whats, parent, rank):
    """Several checkpoints one after the other; those that fail are named by the exit code's message."""
    import torch.distributed as dist
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="29511")
    failed = []
    if "zero" in whats:
        import deepspeed
        deepspeed.init_distributed("gloo")
    else:
        dist.init_process_group("gloo")
    for what in whats.split(","):
        root = parent / what
        try:
            if what.startswith("zero"):
                want = rank_deepspeed(root, int(what[4]), 2 if what.endswith("groups") else 1)
            else:
                want = rank_dcp(root) if what == "dcp" else rank_fsdp(root)
            if rank == 0:
                expected(root / "expected", want)
                for script in root.glob("zero_to_*.py"):
                    script.unlink()
        except Exception:
            traceback.print_exc()
            failed.append(what)
        dist.barrier()
    print(f"rank {rank}: {whats}: " + (f"failed: {failed}" if failed else "done"), flush=True)
    os._exit(1 if failed else 0)


def on_two_ranks(whats, root):
    ranks = [subprocess.Popen([sys.executable, __file__, whats, str(root), str(r)]) for r in range(2)]
    codes = []
    for rank in ranks:
        try:
            codes.append(rank.wait(timeout=180))
        except subprocess.TimeoutExpired:
            rank.kill()
            codes.append("too slow")
    if any(codes):
        raise RuntimeError(f"{whats}: the ranks ended with {codes}")


def succeeds(make):
    try:
        make()
        return True
    except Exception:
        traceback.print_exc()
        return False


def main():
    if len(sys.argv) > 3:
        return rank_main(sys.argv[1], pathlib.Path(sys.argv[2]), int(sys.argv[3]))
    root = pathlib.Path(sys.argv[1] if len(sys.argv) > 1 else HERE / "foreign")
    shutil.rmtree(root, ignore_errors=True)
    torch.manual_seed(0)
    failed = [what for what, make in {
        "torch": lambda: torch_files(root), "sharded_bin": lambda: sharded_bin(root / "sharded_bin"),
        "pretrained": lambda: pretrained(root / "pretrained"),
        "save_state": lambda: save_state(root / "save_state", True),
        "save_state_bin": lambda: save_state(root / "save_state_bin", False),
        "zero": lambda: on_two_ranks("zero1,zero2,zero2_groups,zero3,zero3_groups", root),
        "dcp": lambda: on_two_ranks("dcp,fsdp", root)}.items() if not succeeds(make)]
    if failed:
        sys.exit(f"make_foreign_fixtures: failed: {failed}")
    print(f"{sum(f.stat().st_size for f in root.rglob('*') if f.is_file())} bytes in {root}")


if __name__ == "__main__":
    main()
