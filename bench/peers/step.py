"""A training step of a small BERT encoder (hidden 512, 4 layers, 8 heads, 128 tokens, batch 8 a rank, fused AdamW), 1 thread a rank.

usage: step.py ddp|accelerate|single|fsdp1|fsdp2|zero1|zero2|zero3 [--precision fp32|bf16] [--steps 8]
single: two independent processes, no communication. fsdp*: a unit a layer; bf16 is autocast. zero*: DeepSpeed; bf16 is bf16 weights with
fp32 masters, its own CPU AdamW.  Prints {"step_s", "cpu_s", "peak_bytes"}: medians of the slower rank, the larger peak.
"""
import argparse
import contextlib
import resource
import time

import common


def deepspeed_of(model, options):
    import deepspeed
    engine, *_ = deepspeed.initialize(model=model, model_parameters=list(model.parameters()), dist_init_required=False, config={
        "train_micro_batch_size_per_gpu": 8, "train_batch_size": 16, "gradient_clipping": 0.0, "bf16": {"enabled": options.precision == "bf16"},
        "zero_optimization": {"stage": int(options.mode[4])}, "optimizer": {"type": "AdamW", "params": {"lr": 1e-4}},
        "steps_per_print": 10 ** 9, "wall_clock_breakdown": False})

    class Nothing:
        def step(self):
            engine.step()

        def zero_grad(self):
            pass
    return engine, Nothing(), engine.backward, contextlib.nullcontext


def rank_main(options):
    rank = common.start_rank()
    import torch
    from transformers import BertConfig, BertForSequenceClassification
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(
        hidden_size=512, num_hidden_layers=4, num_attention_heads=8, intermediate_size=2048, vocab_size=30522,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, classifier_dropout=0.0))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    autocast = contextlib.nullcontext if options.precision == "fp32" else lambda: torch.autocast("cpu", torch.bfloat16)
    backward = lambda loss: loss.backward()
    if options.mode == "ddp":
        model = torch.nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    elif options.mode == "accelerate":
        from accelerate import Accelerator
        accelerator = Accelerator(cpu=True, mixed_precision="no" if options.precision == "fp32" else "bf16")
        model, optimizer = accelerator.prepare(model, optimizer)
        backward, autocast = accelerator.backward, contextlib.nullcontext
    elif options.mode == "fsdp1":
        from torch.distributed.fsdp import FullyShardedDataParallel
        from torch.distributed.fsdp.wrap import ModuleWrapPolicy
        from transformers.models.bert.modeling_bert import BertLayer
        model = FullyShardedDataParallel(model, auto_wrap_policy=ModuleWrapPolicy({BertLayer}), device_id=torch.device("cpu"), use_orig_params=True)
    elif options.mode == "fsdp2":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard
        mesh = init_device_mesh("cpu", (2,))
        for layer in model.bert.encoder.layer:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    if options.mode.startswith("fsdp"):
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    if options.mode.startswith("zero"):
        model, optimizer, backward, autocast = deepspeed_of(model, options)
    generator = torch.Generator().manual_seed(rank)
    ids = torch.randint(0, 30522, (8, 128), generator=generator)
    labels = torch.randint(0, 2, (8,), generator=generator)
    mask = torch.ones_like(ids)
    walls, cpus = [], []
    for step in range(2 + options.steps):
        wall, cpu = time.perf_counter(), time.process_time()
        with autocast():
            loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        if step >= 2:
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    common.finish({"step_s": common.median(walls), "cpu_s": common.median(cpus), "peak_bytes": peak})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["ddp", "accelerate", "single", "fsdp1", "fsdp2", "zero1", "zero2", "zero3"])
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--steps", type=int, default=8)
    arguments = parser.parse_args()
    if common.is_rank():
        rank_main(arguments)
    results = common.run_ranks(2, distributed=arguments.mode != "single")
    common.emit(**{key: max(r[key] for r in results) for key in results[0]})
