"""A training step of a small BERT encoder (hidden 512, 4 layers, 8 heads, 128 tokens, batch 8 a rank, fused AdamW), 1 thread a rank.

usage: step.py ddp|accelerate|single [--precision fp32|bf16] [--steps 8]
single: two independent processes, no communication.  Prints {"step_s", "cpu_s"}: medians of the slower rank.
"""
import argparse
import contextlib
import time

import common


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
    common.finish({"step_s": common.median(walls), "cpu_s": common.median(cpus)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["ddp", "accelerate", "single"])
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--steps", type=int, default=8)
    arguments = parser.parse_args()
    if common.is_rank():
        rank_main(arguments)
    results = common.run_ranks(2, distributed=arguments.mode != "single")
    common.emit(step_s=max(r["step_s"] for r in results), cpu_s=max(r["cpu_s"] for r in results))
