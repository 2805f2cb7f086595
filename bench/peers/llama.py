"""Fine-tuning SmolLM2-135M on the King James text by transformers and peft: 2 ranks of 1 thread, rows of 128 tokens.

usage: llama.py fsdp2|zero3|ddp [--lora] [--steps 12] [--batch 2] [--lr 1e-3] [--precision bf16] [--eval]
       llama.py generate [--tokens 64] [--precision fp32]         one process of 1 thread, greedy, KV cache
fsdp2: Accelerate's plugin, a unit a layer. zero3: DeepSpeed, its own CPU AdamW. Prints {"step_s", "cpu_s", "tokens_per_s", "peak_bytes",
"start_s", "first_step_s"} (medians of the slower rank after two steps; from the launch of the ranks to the beginning, and the end, of the first step), with --eval
also {"eval_before", "eval_after"} on the last 64 rows; generate: {"tokens_per_s", "first_token_s"}.
Needs what `tools/bootstrap smollm2 kjv` brings.
"""
import argparse
import contextlib
import os
import pathlib
import resource
import time

import common

CACHE = pathlib.Path(os.environ.get("TROUPE_CACHE", pathlib.Path.home() / ".cache" / "troupe"))
MODEL, TEXT, ROW, HELD_OUT = CACHE / "smollm2" / "model", CACHE / "kjv" / "kjv.txt", 128, 64


def rows_of_text():
    """(training rows, the last 64 rows), books ended by eos."""
    import torch
    from transformers import AutoTokenizer
    from transformers.utils import logging
    logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    books = TEXT.read_text(encoding="utf-8").split("\n\n")
    ids = [i for book in books for i in tokenizer(book.rstrip("\n") + "\n", add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]]
    rows = torch.tensor(ids[: len(ids) // ROW * ROW]).view(-1, ROW)
    return rows[:-HELD_OUT], rows[-HELD_OUT:]


def load_model(lora, dtype):
    import torch
    from transformers import AutoModelForCausalLM
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype, attn_implementation="sdpa", use_cache=False)
    if lora:
        from peft import LoraConfig, get_peft_model
        model = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, lora_dropout=0.05, target_modules=["gate_proj", "up_proj", "down_proj"], task_type="CAUSAL_LM"))
    return model, [p for p in model.parameters() if p.requires_grad]


def prepared(options):
    """(model, step(loss)) of the mode."""
    import torch
    bf16 = options.precision == "bf16"
    torch.manual_seed(42)
    model, trained = load_model(options.lora, torch.float32)
    adam = lambda parameters: torch.optim.AdamW(parameters, lr=options.lr, weight_decay=0.0, fused=True)
    if options.mode == "zero3":
        import deepspeed
        engine, *_ = deepspeed.initialize(model=model, model_parameters=trained, dist_init_required=False, config={
            "train_micro_batch_size_per_gpu": options.batch, "train_batch_size": 2 * options.batch, "gradient_clipping": 1.0, "bf16": {"enabled": bf16},
            "zero_optimization": {"stage": 3}, "optimizer": {"type": "AdamW", "params": {"lr": options.lr, "weight_decay": 0.0}}, "steps_per_print": 10 ** 9})

        def step(loss):
            engine.backward(loss)
            engine.step()
        return engine, step, None
    from accelerate import Accelerator
    plugin = None
    if options.mode == "fsdp2":
        from accelerate import FullyShardedDataParallelPlugin
        plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap", transformer_cls_names_to_wrap=["LlamaDecoderLayer"],
                                                reshard_after_forward=True, cpu_ram_efficient_loading=False)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16" if bf16 else "no", fsdp_plugin=plugin)
    model, optimizer = accelerator.prepare(model, adam(trained))

    def step(loss):
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    return model, step, optimizer


def schedule(optimizer_groups, lr, update, steps):
    """Linear, 10 updates of warm-up."""
    factor = (update / 10) if update < 10 else max(0.0, (steps - update) / max(1, steps - 10))
    for group in optimizer_groups:
        group["lr"] = lr * factor


def evaluate(model, rows, rank):
    """Mean loss of the rows; every rank computes all of them, which a sharded model needs."""
    import torch
    model.eval()
    with torch.no_grad():
        losses = [model(input_ids=rows[i: i + 8], labels=rows[i: i + 8]).loss.float().item() for i in range(0, len(rows), 8)]
    model.train()
    return sum(losses) / len(losses)


def rank_main(options):
    begin = float(os.environ["PEER_BEGIN"])
    rank = common.start_rank()
    import torch
    torch.set_num_threads(1)
    train, held_out = rows_of_text()
    model, step, optimizer = prepared(options)
    groups = model.optimizer.param_groups if options.mode == "zero3" else optimizer.param_groups
    figures = {}
    if options.eval:
        figures["eval_before"] = evaluate(model, held_out, rank)
    model.train()
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(42))
    walls, cpus, start, first = [], [], 0.0, 0.0
    for update in range(options.steps):
        at = (update * 2 + rank) * options.batch
        batch = train[order[at: at + options.batch]]
        if update == 0:
            start = time.time() - begin
        wall, cpu = time.perf_counter(), time.process_time()
        if options.eval:
            schedule(groups, options.lr, update, options.steps)
        loss = model(input_ids=batch, labels=batch).loss
        step(loss)
        loss.item()
        if update == 0:
            first = time.time() - begin
        if update >= 2:
            walls.append(time.perf_counter() - wall)
            cpus.append(time.process_time() - cpu)
    if options.eval:
        figures["eval_after"] = evaluate(model, held_out, rank)
    step_s = common.median(walls)
    common.finish({**figures, "step_s": step_s, "cpu_s": common.median(cpus), "start_s": start, "first_step_s": first, "tokens_per_s": -2 * options.batch * ROW / step_s,
                   "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024})


def generate(options):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    torch.set_num_threads(1)
    dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
    model, tokenizer = AutoModelForCausalLM.from_pretrained(MODEL, dtype=dtype).eval(), AutoTokenizer.from_pretrained(MODEL)
    ids = tokenizer("In the beginning God created the heaven and the earth.", return_tensors="pt")
    run = lambda tokens: model.generate(**ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=2)
    run(4)
    walls, firsts = [], []
    for _ in range(3):
        begin = time.perf_counter()
        run(1)
        middle = time.perf_counter()
        run(options.tokens)
        firsts.append(middle - begin)
        walls.append(time.perf_counter() - middle)
    common.emit(tokens_per_s=options.tokens / common.median(walls), first_token_s=common.median(firsts))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("mode", choices=["fsdp2", "zero3", "ddp", "generate"])
    parser.add_argument("--lora", action="store_true")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default=None)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--eval", action="store_true")
    arguments = parser.parse_args()
    arguments.precision = arguments.precision or ("fp32" if arguments.mode == "generate" else "bf16")
    if arguments.mode == "generate":
        generate(arguments)
    elif common.is_rank():
        rank_main(arguments)
    else:
        os.environ["PEER_BEGIN"] = repr(time.time())
        results = common.run_ranks(2)
        worst = {key: max(r[key] for r in results) for key in results[0]}
        common.emit(**{**worst, "tokens_per_s": -worst["tokens_per_s"]})
