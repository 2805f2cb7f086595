"""Makes this folder with peft 0.21.2, transformers 5.23.0 and torch 2.11.0: a small random Llama with biases, adapters of every kind of
LoraConfig that examples/lora reads, and what the model gives with each. Run it in the environment of bench/setup_peers.

usage: make.py            writes beside itself
"""
import json
import pathlib
import shutil

import peft
import torch
import transformers
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

HERE = pathlib.Path(__file__).resolve().parent
CASES = {
    "rslora": dict(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"], use_rslora=True),
    "pattern": dict(r=2, lora_alpha=4, target_modules=r"model\.layers\.1\..*_proj"),
    "all_linear": dict(r=2, lora_alpha=6, target_modules="all-linear"),
    "suffix": dict(r=3, lora_alpha=3, target_modules=["self_attn.o_proj", "mlp.down_proj"]),
    "bias_lora_only": dict(r=2, lora_alpha=4, target_modules=["q_proj", "up_proj"], bias="lora_only"),
    "bias_all": dict(r=2, lora_alpha=4, target_modules=["q_proj"], bias="all"),
    "saved_head": dict(r=2, lora_alpha=4, target_modules=["v_proj"], modules_to_save=["lm_head"]),
    "saved_both": dict(r=2, lora_alpha=4, target_modules=["v_proj"], modules_to_save=["lm_head", "embed_tokens"]),
}


def base():
    torch.manual_seed(5)
    config = LlamaConfig(vocab_size=48, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
                         max_position_embeddings=64, attention_bias=True, mlp_bias=True, tie_word_embeddings=False)
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1 if "norm" in name else 0, 0.3)
    return model.eval()


def main():
    base().save_pretrained(HERE / "model")
    ids = torch.randint(0, 48, (2, 9), generator=torch.Generator().manual_seed(3))
    tensors, said = {"input_ids": ids}, {"versions": {m.__name__: m.__version__ for m in (peft, transformers, torch)}, "tolerance": 2e-5, "cases": {}}
    for name, options in CASES.items():
        model = get_peft_model(base(), LoraConfig(task_type="CAUSAL_LM", lora_dropout=0.0, **options))
        torch.manual_seed(11)
        trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for parameter in trained.values():
                parameter.add_(torch.randn_like(parameter), alpha=0.2)
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        tensors[f"{name}.logits"] = model(input_ids=ids).logits.detach()
        said["cases"][name] = {"trainable_parameters": sum(p.numel() for p in trained.values()), "loss": loss.item(),
                               "grad_norm": torch.stack([p.grad.double().norm() ** 2 for p in trained.values()]).sum().sqrt().item()}
        shutil.rmtree(HERE / name, ignore_errors=True)
        model.save_pretrained(HERE / name)
        (HERE / name / "README.md").unlink(missing_ok=True)
        tensors[f"{name}.merged"] = model.merge_and_unload()(input_ids=ids).logits.detach()
    save_file(tensors, HERE / "io.safetensors")
    (HERE / "golden.json").write_text(json.dumps(said, indent=1) + "\n")


if __name__ == "__main__":
    main()
