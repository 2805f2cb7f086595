"""Runs the command `troupe` the way a user does, well and badly."""
import json
import os
import pathlib
import subprocess
import tempfile
import unittest

CONFIGS = pathlib.Path(os.environ["TROUPE_CONFIGS"])
GGUF = pathlib.Path(os.environ["TROUPE_GGUF"]) / "llama.gguf"
GOLDEN = pathlib.Path(os.environ["TROUPE_GOLDEN_DIR"])


def troupe(*words):
    done = subprocess.run([os.environ["TROUPE_PROGRAM"], *map(str, words)], capture_output=True, text=True, timeout=20)
    return done.returncode, done.stdout, done.stderr


class Cli(unittest.TestCase):
    def refused(self, code, text, *words):
        got, out, err = troupe(*words)
        self.assertEqual((got, out), (code, ""), err)
        self.assertIn(text, err)
        self.assertLessEqual(len(err.splitlines()), 2)

    def test_config_prints_values_and_sources(self):
        file = CONFIGS / "guide_deepspeed.json"
        code, out, err = troupe("config", "--micro-batch-size", 16, file, "--world-size", 4, "--hidden-size", 768)
        self.assertEqual((code, err), (0, ""))
        rows = {line.split()[0]: line for line in out.splitlines()}
        self.assertIn("7680", rows["persistence_threshold"])
        self.assertTrue(rows["persistence_threshold"].endswith("auto: 10*hidden_size"))
        self.assertTrue(rows["strategy"].endswith(f"{file}:zero_optimization.stage"))
        self.assertIn("64", rows["train_batch_size"])
        self.assertIn("round_robin_gradients: shards are equal", out)

    def test_config_prints_json_and_what_is_not_known_yet(self):
        code, out, _ = troupe("config", CONFIGS / "guide_deepspeed.json", "--json")
        self.assertEqual(code, 0)
        made = json.loads(out)
        self.assertEqual(made["values"]["gradient_clipping"], {"value": "1", "source": "auto: 1.0"})
        self.assertTrue(any("hidden_size" in line for line in made["unresolved"]))
        self.refused(1, "needs the model's hidden_size", "config", CONFIGS / "guide_deepspeed.json", "--strict")

    def test_config_reads_accelerate_files(self):
        for name in ("multi_gpu.yaml", "deepspeed.yaml", "fsdp.yaml", "deepspeed_file.yaml"):
            code, out, err = troupe("config", CONFIGS / name, "--json")
            self.assertEqual(code, 0, err)
            self.assertIn(json.loads(out)["values"]["num_processes"]["value"], ("8", "4"))

    def test_chaos_explains_a_plan_and_runs_a_program_under_it(self):
        plan = "rank=1 step=5 kind=kill; rank=any step=3..9 kind=exit:4 attempt=2; seed=7"
        code, out, err = troupe("chaos", plan)
        self.assertEqual((code, err), (0, ""))
        self.assertEqual(out.splitlines()[0], "attempt 1, rank 1, step 5: kill")
        self.assertRegex(out.splitlines()[1], r"^attempt 2, rank [01], step [3-9]: exit:4$")
        code, out, _ = troupe("chaos", plan, "--", "sh", "-c", 'echo "$TROUPE_CHAOS"; exit 5')
        self.assertEqual((code, out.strip()), (5, plan))
        code, out, _ = troupe("chaos", "--list")
        self.assertEqual((code, len(out.splitlines())), (0, 14))
        self.refused(1, "did you mean 'kill'?", "chaos", "rank=1 step=5 kind=kil", "--", "true")
        self.refused(1, "there are 2 ranks", "chaos", "rank=2 step=5 kind=kill")
        self.refused(1, "cannot run /no/such/program", "chaos", plan, "--", "/no/such/program")
        self.refused(2, "PLAN is required", "chaos")

    def test_help_and_wrong_words(self):
        for words in (["--help"], ["chaos", "--help"], ["config", "--help"], ["estimate-memory", "--help"]):
            code, out, err = troupe(*words)
            self.assertEqual((code, err), (0, ""))
            self.assertIn("Usage: troupe", out)
        self.refused(2, "'conifg' is unknown; did you mean 'config'?", "conifg")
        self.refused(2, "'--wrld-size' is unknown; did you mean '--world-size'?", "config", "x.json", "--wrld-size", 3)
        self.refused(2, "FILE is required", "config")
        self.refused(2, "--world-size", "config", "x.json", "--world-size", "many")
        self.refused(2, "say what to do", *[])

    def test_wrong_files_are_one_clear_line(self):
        self.refused(1, "nowhere.json: there is no such file", "config", "nowhere.json")
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / "a.yaml"
            file.write_text("distributed_type: FSDP\nfsdp_config:\n  fsdp_verson: 2\n")
            self.refused(1, f"{file}:3: fsdp_config.fsdp_verson: is unknown; did you mean 'fsdp_version'?", "config", file)
            self.refused(1, "has no model.safetensors", "estimate-memory", folder)
            broken = pathlib.Path(folder) / "model.safetensors"
            broken.write_bytes(b"\xff" * 40)
            self.refused(1, str(broken), "estimate-memory", folder)

    def test_estimate_follows_zero_arithmetic(self):
        code, out, err = troupe("estimate-memory", GOLDEN / "a_tiny_bert", "--ranks", 2, "--json")
        self.assertEqual((code, err), (0, ""))
        made = json.loads(out)
        psi = made["num_params"]
        resident = {line["strategy"]: line["resident"] for line in made["bytes_per_rank"]}
        self.assertEqual(psi % 2, 0)
        self.assertEqual(resident, {"replicate": 16 * psi, "zero1": 12 * psi, "zero2": 10 * psi, "zero3": 8 * psi})
        self.assertGreater(made["num_units"], 1)

    def test_estimate_takes_strategy_precision_and_config(self):
        model = GOLDEN / "a_tiny_bert"
        code, out, _ = troupe("estimate-memory", model, "--strategy", "zero2", "--ranks", 4, "--precision", "bf16", "--grad-dtype", "param", "--json")
        self.assertEqual(code, 0)
        made = json.loads(out)
        self.assertEqual(made["bytes_per_rank"][0]["formula"], "2Ψ + 14Ψ/N")
        code, out, err = troupe("estimate-memory", model, "--ranks", 2, "--config", CONFIGS / "guide_deepspeed.json", "--json")
        self.assertEqual(code, 0, err)
        line = json.loads(out)["bytes_per_rank"][0]
        self.assertEqual((line["strategy"], line["optimizer"]), ("zero3", 0))
        self.assertEqual(line["offloaded"], 4 * made["num_params"])
        self.refused(2, "--strategy", "estimate-memory", model, "--strategy", "zero4")
        self.refused(2, "excludes", "estimate-memory", model, "--strategy", "zero3", "--config", "x.json")

    def test_certs_are_made_shown_renewed_and_rotated(self):
        with tempfile.TemporaryDirectory() as place:
            ca, node = pathlib.Path(place, "ca"), pathlib.Path(place, "n1")
            code, out, err = troupe("certs", "init", "--directory", ca, "--cluster", "lab")
            self.assertEqual((code, err), (0, ""))
            self.assertIn("troupe certs issue", out)
            self.assertNotIn((ca / "token").read_text().strip(), out)
            issue = ["certs", "issue", "--directory", ca, "--role", "node", "--name", "n1", "--into", node]
            code, out, err = troupe(*issue, "--days", 90)
            self.assertEqual((code, err), (0, ""))
            self.assertEqual(sorted(file.name for file in node.iterdir()), ["ca.pem", "n1.key", "n1.pem", "token"])
            self.assertEqual([oct((node / name).stat().st_mode & 0o777) for name in ("n1.key", "token", "n1.pem")], ["0o600", "0o600", "0o644"])
            self.refused(1, "n1.pem is there already", *issue)
            self.refused(1, "ca.pem is there already", "certs", "init", "--directory", node, "--cluster", "lab")
            self.assertEqual(troupe("certs", "rotate", "--directory", ca)[0], 0)
            self.assertEqual(troupe(*issue, "--replace")[0], 0)
            code, out, _ = troupe("certs", "show", "--directory", node, "--json")
            rows = [(row["role"], row["cluster"], row["name"]) for row in json.loads(out)]
            self.assertEqual(rows, [("ca", "lab", ""), ("ca", "lab", ""), ("node", "lab", "n1")])
            self.assertRegex(troupe("certs", "show", "--directory", node)[1], r"\nn1.pem +lab +node +n1 +\d{4}-\d\d-\d\d +36[45]\n")

    def test_certs_says_what_is_wrong(self):
        with tempfile.TemporaryDirectory() as place:
            self.refused(1, "certificates are issued where the CA was made", "certs", "issue", "--directory", place, "--role", "node", "--name", "a")
            self.refused(1, "is no name of a cluster", "certs", "init", "--directory", place + "/x", "--cluster", "a b")
            self.refused(1, "is no directory", "certs", "show", "--directory", place + "/x")
            self.refused(2, "--role", "certs", "issue", "--directory", place, "--role", "king", "--name", "a")
            self.refused(2, "did you mean 'rotate'?", "certs", "rotat")
            self.refused(2, "init, issue, rotate or show", "certs")

    def test_convert_makes_a_hugging_face_directory(self):
        with tempfile.TemporaryDirectory() as folder:
            model = pathlib.Path(folder) / "model"
            code, out, err = troupe("convert", GGUF, model, "--dtype", "f32", "--quiet")
            self.assertEqual((code, err), (0, ""))
            self.assertRegex(out, rf"^{model}: \d+ parameters in \d+ tensors of f32: config.json, ")
            self.assertEqual(json.loads((model / "config.json").read_text())["model_type"], "llama")
            header = (model / "model.safetensors").read_bytes()
            names = json.loads(header[8:8 + int.from_bytes(header[:8], "little")])
            self.assertEqual(names["model.embed_tokens.weight"]["dtype"], "F32")
            self.assertTrue((model / "tokenizer.json").exists())
            # Without asking, nothing that is there is written over.
            before = (model / "config.json").stat().st_mtime_ns
            code, _, err = troupe("convert", GGUF, model, "--quiet")
            self.assertEqual((code, (model / "config.json").stat().st_mtime_ns), (1, before), err)

            bare = pathlib.Path(folder) / "bare"
            self.assertEqual(troupe("convert", GGUF, bare, "--no-tokenizer", "--max-shard-size", 1)[0], 0)
            self.assertFalse((bare / "tokenizer.json").exists())

            broken = pathlib.Path(folder) / "broken.gguf"
            broken.write_bytes(GGUF.read_bytes()[:-100])
            self.refused(1, str(broken), "convert", broken, pathlib.Path(folder) / "none")
            self.assertFalse((pathlib.Path(folder) / "none").exists(), "half a model was left")
            self.refused(1, "nowhere.gguf", "convert", "nowhere.gguf", pathlib.Path(folder) / "none")
            self.refused(2, "--dtype", "convert", GGUF, pathlib.Path(folder) / "none", "--dtype", "f8")

    def test_starts_without_libtorch(self):
        linked = subprocess.run(["ldd", os.environ["TROUPE_PROGRAM"]], capture_output=True, text=True, check=True).stdout
        self.assertNotIn("torch", linked)


if __name__ == "__main__":
    unittest.main()
