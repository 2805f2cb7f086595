"""Runs llama_finetune the way a user does, well and badly, on a tiny Llama; the real one where tools/bootstrap has brought it."""
import json
import math
import os
import pathlib
import signal
import subprocess
import tempfile
import time
import unittest

PROGRAM = pathlib.Path(os.environ["TROUPE_PROGRAMS"]) / "llama_finetune"
TROUPE = os.environ["TROUPE_PROGRAM"]
GGUF = pathlib.Path(os.environ["TROUPE_GGUF"]) / "llama.gguf"
CONFIGS = pathlib.Path(os.environ["TROUPE_CONFIGS"])
CACHE = pathlib.Path(os.environ.get("TROUPE_CACHE") or pathlib.Path.home() / ".cache" / "troupe")
PYTHON = os.environ.get("TROUPE_TEST_PYTHON", "python3")
TEXT = "".join(f"the {word} in the {other} thinks of {word}.\n" for word in ("king", "river", "stone", "night", "house") for other in ("field", "water", "light", "voice") * 3)

PEFT = """
import sys, torch
from pathlib import Path
from peft import PeftModel
from transformers import AutoModelForCausalLM
base, adapter, merged = sys.argv[1:]
load = lambda path: AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
ids = torch.arange(3, 60).view(3, 19)
with torch.no_grad():
    before = load(base)(ids).logits
    ours = load(merged)(ids).logits
    model = PeftModel.from_pretrained(load(base), adapter)
    missing = [n for n, p in model.named_parameters() if "lora_B" in n and not p.any()]
    theirs = model.eval()(ids).logits
assert not missing, missing
assert torch.allclose(ours, theirs, atol=1e-4), (ours - theirs).abs().max()
assert not torch.allclose(ours, before, atol=1e-3), "the adapter changes nothing"
print("equal")
"""


def reports(run, rank=0):
    lines = [json.loads(line) for line in (run / "reports.jsonl").read_text().splitlines()]
    return [line["metrics"] for line in lines if line["rank"] == rank]


def curve(run):
    """{update: loss}; of an update that was made again, what came last."""
    return {m["iteration"]: m["train_loss"] for m in reports(run) if "fwd_time" in m}


class Llama(unittest.TestCase):
    def setUp(self):
        self.scratch = tempfile.TemporaryDirectory()
        self.addCleanup(self.scratch.cleanup)
        self.folder = pathlib.Path(self.scratch.name)
        subprocess.run([TROUPE, "convert", GGUF, self.folder / "model", "--dtype", "f32", "--quiet"], check=True, stdout=subprocess.DEVNULL)
        (self.folder / "train.txt").write_text(TEXT)
        with open(self.folder / "train.jsonl", "w") as file:
            for i in range(24):
                file.write(json.dumps({"question": f"what is {i} and {i + 1}?" + " well?" * (i % 5), "answer": f"{2 * i + 1}"}) + "\n")

    def command(self, *words, name="run", data="train.txt"):
        return [str(w) for w in (PROGRAM, "--model-path", self.folder / "model", "--train_path", self.folder / data, "--output_dir", self.folder / "results", "--name", name,
                                 "--ctx-len", 32, "--test_rows", 4, "--batch-size-per-device", 2, "--num-devices", 2, *words)]

    def run_it(self, *words, name="run", data="train.txt", **environment):
        done = subprocess.run(self.command(*words, name=name, data=data), capture_output=True, text=True, timeout=100, env=dict(os.environ, **environment))
        return done, self.folder / "results" / name

    def trained(self, *words, **keywords):
        done, run = self.run_it(*words, **keywords)
        self.assertEqual(done.returncode, 0, done.stderr[-2000:])
        return done, run

    def refused(self, text, *words, data="train.txt"):
        done, _ = self.run_it(*words, name="refused", data=data)
        self.assertNotEqual(done.returncode, 0)
        self.assertIn(text, done.stdout + done.stderr)

    def test_lora_under_zero3_reports_every_update_and_shows_before_and_after(self):
        done, run = self.trained("--lora", "--lora-config", CONFIGS / "lora.json", "--ds-config", CONFIGS / "zero_3.json", "--max_steps", 12, "--lr", 0.02, "--eval_first",
                                 "--prompt", "the king", "--export", self.folder / "merged")
        told = reports(run)
        updates = [m for m in told if "fwd_time" in m]
        self.assertEqual([m["iteration"] for m in updates], list(range(1, 13)))
        for key in ("bwd_time", "optim_time", "step_time", "tokens_per_s", "mfu", "tflops"):
            self.assertGreater(updates[-1][key], 0, key)
        before, after = [m["eval_loss"] for m in told if "eval_loss" in m]
        self.assertLess(after, before - 0.02)
        self.assertAlmostEqual(told[-1]["perplexity"], math.exp(after), places=6)
        self.assertIn("Before:\n  the king", done.stdout)
        self.assertIn("After:\n  the king", done.stdout)
        checkpoint = max((run).glob("checkpoint_*"))
        self.assertTrue({"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json"} <= {p.name for p in checkpoint.iterdir()})
        weights = sum(p.stat().st_size for p in checkpoint.glob("model*.safetensors"))
        self.assertLess(weights, (self.folder / "model" / "model.safetensors").stat().st_size, "the frozen base is in the checkpoint")
        if subprocess.run([PYTHON, "-c", "import torch, transformers, peft"], capture_output=True).returncode:
            self.skipTest("no Python with torch, transformers and peft; TROUPE_TEST_PYTHON may name one (bench/setup_peers makes one)")
        (self.folder / "peft_check.py").write_text(PEFT)
        checked = subprocess.run([PYTHON, self.folder / "peft_check.py", self.folder / "model", checkpoint, self.folder / "merged"], capture_output=True, text=True)
        self.assertEqual(checked.stdout.strip(), "equal", checked.stderr[-2000:])

    def test_full_training_of_questions_with_tags_masked_prompts_and_length_groups(self):
        done, run = self.trained("--mx", "no", "--ds-config", self.plain_zero3(), "--dataset_config", CONFIGS / "tokens.json", "--mask_prompt", "--group_by_length", "--num-epochs", 2,
                                 "--ctx-len", 64, "--lr", 0.01, "--grad_accum", 2, data="train.jsonl")
        losses = [m["eval_loss"] for m in reports(run) if "eval_loss" in m]
        self.assertEqual(len(losses), 2)
        self.assertLess(losses[1], losses[0])
        checkpoints = list(run.glob("checkpoint_*"))
        self.assertEqual(len(checkpoints), 1, "num_to_keep is 1")
        config = json.loads((checkpoints[0] / "config.json").read_text())
        base = json.loads((self.folder / "model" / "config.json").read_text())
        self.assertEqual(config["vocab_size"], base["vocab_size"] + 4)
        self.assertIn("<START_A>", (checkpoints[0] / "tokenizer.json").read_text())

    def plain_zero3(self):
        """The configuration without bf16."""
        config = json.loads((CONFIGS / "zero_3.json").read_text())
        del config["bf16"]
        (self.folder / "zero3_fp32.json").write_text(json.dumps(config))
        return self.folder / "zero3_fp32.json"

    def test_offloaded_and_sharded_curves_are_one(self):
        wanted = None
        for name, words in (("one", ["--num-devices", 1, "--batch-size-per-device", 4]), ("two", []), ("four", ["--num-devices", 4, "--batch-size-per-device", 1]), ("offload", ["--ds-config", CONFIGS / "zero_3_offload.json"])):
            _, run = self.trained("--lora", "--lora-config", self.lora_without_dropout(), "--ds-config", CONFIGS / "zero_3.json", "--max_steps", 5, "--lr", 0.01, *words, name=name)
            losses = curve(run)
            wanted = wanted or losses
            for step, loss in losses.items():
                self.assertAlmostEqual(loss, wanted[step], delta=2e-3, msg=f"{name}, update {step}")

    def lora_without_dropout(self):
        config = json.loads((CONFIGS / "lora.json").read_text())
        config["lora_dropout"] = 0
        (self.folder / "lora.json").write_text(json.dumps(config))
        return self.folder / "lora.json"

    def test_a_killed_rank_changes_nothing_in_the_curve(self):
        words = ["--lora", "--ds-config", CONFIGS / "zero_3.json", "--max_steps", 10, "--placement", "processes", "--max_failures", 2]
        _, whole = self.trained(*words, name="whole")
        _, broken = self.trained(*words, name="broken", TROUPE_CHAOS="rank=1 step=5 kind=kill")
        self.assertEqual(curve(broken), curve(whole))

    def test_a_killed_program_goes_on_with_the_same_curve(self):
        words = ["--lora", "--ds-config", CONFIGS / "zero_3.json", "--num-epochs", 60, "--max_steps", 120, "--checkpoint_every", 10]
        _, whole = self.trained(*words, name="whole")
        program = subprocess.Popen(self.command(*words, name="broken"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        run = self.folder / "results" / "broken"
        deadline = time.time() + 60
        while program.poll() is None and time.time() < deadline and not list(run.glob("checkpoint_*")):
            time.sleep(0.005)
        program.send_signal(signal.SIGKILL)
        program.wait()
        self.assertLess(max(curve(run), default=0), 120, "it had ended before it was killed")
        self.trained(*words, "--resume", "must", name="broken")
        self.assertEqual(curve(run), curve(whole))

    def test_stops_below_a_perplexity_and_after_one_step_as_a_test(self):
        _, run = self.trained("--lora", "--num-epochs", 3, "--stop_perplexity", 1e6, name="stop")
        self.assertEqual(len([m for m in reports(run) if "perplexity" in m]), 1)
        _, run = self.trained("--as-test", "--num-epochs", 3, name="test")
        self.assertEqual((len(curve(run)), len([m for m in reports(run) if "perplexity" in m])), (1, 1))

    def test_wrong_inputs_are_named(self):
        self.refused("--ctx-len 129 is longer than this model's context of 128 tokens", "--ctx-len", 129)
        self.refused("no.jsonl: there is no such file", data="no.jsonl")
        (self.folder / "bad.jsonl").write_text('{"text": "a b"}\n{"quest": 1}\n')
        self.refused("bad.jsonl:2: has none of: question and answer", data="bad.jsonl")
        (self.folder / "lora.json").write_text('{"r": 8, "target_modules": ["gate_prj"]}')
        self.refused("gate_proj", "--lora", "--lora-config", self.folder / "lora.json")
        self.refused("unknown option '--batch-sze-per-device', did you mean '--batch-size-per-device'?", "--batch-sze-per-device", 3)
        config = json.loads((self.folder / "model" / "config.json").read_text())
        config["vocab_size"] -= 1
        (self.folder / "model" / "config.json").write_text(json.dumps(config))
        self.refused(f"the tokenizer has {config['vocab_size'] + 1} tokens, but the model's vocab_size is {config['vocab_size']}")

    def test_slow_lora_on_smollm2_learns_the_king_james_text(self):
        model, text = CACHE / "smollm2" / "model", CACHE / "kjv" / "kjv.txt"
        if not model.exists() or not text.exists():
            self.skipTest(f"there is no {model} or no {text}; tools/bootstrap smollm2 kjv makes them")
        subprocess.run([PROGRAM, "--model-path", model, "--train_path", text, "--output_dir", self.folder / "results", "--name", "kjv", "--ctx-len", "128", "--batch-size-per-device", "2",
                        "--eval-batch-size-per-device", "8", "--max_steps", "60", "--lr", "1e-3", "--eval_first", "--lora", "--lora-config", CONFIGS / "lora.json",
                        "--ds-config", CONFIGS / "zero_3.json", "--no-grad-ckpt", "--num-devices", "2"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=1000)
        before, after = [m["eval_loss"] for m in reports(self.folder / "results" / "kjv") if "eval_loss" in m]
        self.assertAlmostEqual(before, 3.10, delta=0.02)
        self.assertLessEqual(after, 2.85)


if __name__ == "__main__":
    unittest.main()
