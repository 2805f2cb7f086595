"""Runs `troupe checkpoint` the way a user does, well and badly."""
import json
import os
import pathlib
import shutil
import struct
import subprocess
import tempfile
import unittest


def troupe(*words):
    done = subprocess.run([os.environ["TROUPE_PROGRAM"], "checkpoint", *map(str, words)], capture_output=True, text=True, timeout=20)
    return done.returncode, done.stdout, done.stderr


def tensors(file):
    """Name -> (dtype, shape, bytes) of a safetensors file, by its specification."""
    raw = file.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    header = json.loads(raw[8:8 + size])
    header.pop("__metadata__", None)
    return {name: (entry["dtype"], entry["shape"], raw[8 + size + entry["data_offsets"][0]:8 + size + entry["data_offsets"][1]])
            for name, entry in header.items()}


class Checkpoint(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        self.run_dir = self.root / "mine"
        subprocess.run([os.environ["TROUPE_MAKE_RUN"], self.run_dir], check=True, timeout=20)
        self.checkpoints = [self.run_dir / f"checkpoint_00000{i}" for i in range(3)]

    def refused(self, code, text, *words):
        got, out, err = troupe(*words)
        self.assertEqual((got, out), (code, ""), err)
        self.assertIn(text, err)
        self.assertLessEqual(len(err.splitlines()), 2)

    def done(self, *words, code=0):
        got, out, err = troupe(*words)
        self.assertEqual((got, err), (code, ""), out)
        return out

    def flip(self, file, offset):
        raw = bytearray(file.read_bytes())
        raw[offset] ^= 1
        file.write_bytes(raw)

    def test_ls_says_what_there_is(self):
        lines = self.done("ls", self.run_dir).splitlines()
        self.assertEqual(lines[0].split(), ["CHECKPOINT", "STEP", "EPOCH", "SIZE", "WRITERS", "AGE", "STATE", "METRICS"])
        self.assertEqual(len(lines), 4)
        for word in ("checkpoint_000001", "20", "just now", "sizes fit", "acc=0.9 epoch=1"):
            self.assertIn(word, lines[2])
        made = json.loads(self.done("ls", self.run_dir, "--verify", "--json"))
        self.assertEqual([(row["index"], row["step"], row["state"], row["metrics"]["acc"]) for row in made],
                         [(0, 10, "verified", 0.5), (1, 20, "verified", 0.9), (2, 30, "verified", 0.7)])
        self.assertEqual(made[0]["bytes"], sum(file.stat().st_size for file in self.checkpoints[0].iterdir() if file.name != "manifest.troupe"))

    def test_ls_names_what_is_damaged(self):
        (self.checkpoints[1] / "vocab.txt").unlink()
        out = self.done("ls", self.run_dir, code=1)
        self.assertIn("checkpoint_000001: ", out)
        self.assertIn("vocab.txt", out)
        self.assertIn("checkpoint_000002", out)

    def test_inspect_says_it_in_words(self):
        out = self.done("inspect", self.checkpoints[1])
        for words in ("report 1, attempt 1, written by 2 ranks", "step 20, epoch 1; 2 ranks, strategy zero3", "learning rate 0.001, 0.0005",
                      "loader 0: epoch 1, 5 batches a rank and 80 samples into it", "rank 1: random numbers' state 12 B, 'mine' 3 B", "metrics: acc=0.9"):
            self.assertIn(words, out)
        row = next(line for line in out.splitlines() if line.startswith("layer.w "))
        self.assertEqual(row.split(None, 2)[1:], ["F32", "[6, 4]  96 B"])
        made = json.loads(self.done("inspect", self.checkpoints[1], "--json"))
        self.assertEqual(made["tensors"]["model"], [{"name": "layer.w", "dtype": "F32", "shape": [6, 4], "bytes": 96},
                                                    {"name": "layer.w.bias", "dtype": "BF16", "shape": [3], "bytes": 6}])
        self.assertEqual(made["state"]["learning_rates"], [[0.001, 0.0005]])

    def test_inspect_reads_plain_hugging_face_directories(self):
        plain = self.root / "plain"
        plain.mkdir()
        shutil.copy(self.checkpoints[0] / "model.safetensors", plain)
        self.assertIn("without a manifest", self.done("inspect", plain))

    def test_verify_reads_every_byte(self):
        out = self.done("verify", self.run_dir)
        self.assertEqual(out.count("every byte verifies"), 3)
        file = self.checkpoints[2] / "model.safetensors"
        self.flip(file, file.stat().st_size - 50)
        for directory in (self.run_dir, self.checkpoints[2]):
            out = self.done("verify", directory, code=1)
            self.assertIn("checkpoint_000002: DAMAGED", out)
            self.assertIn("model.safetensors", out)
            self.assertIn("layer.w", out)
            self.assertIn("byte", out)
        made = json.loads(self.done("verify", self.run_dir, "--json", code=1))
        self.assertEqual([row["verified"] for row in made], [True, True, False])
        for name in ("manifest.troupe", "manifest.json", "rank_00001.troupe", "vocab.txt"):
            file = self.checkpoints[0] / name
            self.flip(file, file.stat().st_size // 2)
            self.assertIn(name, self.done("verify", self.checkpoints[0], code=1))
            self.flip(file, file.stat().st_size // 2)
        self.done("verify", self.checkpoints[0])

    def test_diff_measures_what_changed(self):
        out = self.done("diff", self.checkpoints[0], self.checkpoints[2], code=1)
        row = next(line for line in out.splitlines() if line.startswith("model: layer.w "))
        self.assertEqual(row.split()[2:5], ["values", "2", f"{2 / sum(i * i for i in range(1, 24)) ** 0.5:.6g}"])
        self.assertIn("step: 10 -> 30", out)
        self.assertIn("2 tensors differ, 2 equal byte for byte", out)
        made = json.loads(self.done("diff", self.checkpoints[0], self.checkpoints[2], "--json", code=1))
        self.assertEqual(made["equal_tensors"], 2)
        same = self.done("diff", self.checkpoints[1], self.checkpoints[1])
        self.assertEqual(same, "4 tensors, all equal, byte for byte\n")

    def test_diff_names_tensors_of_one_side(self):
        plain = self.root / "plain"
        plain.mkdir()
        header = json.dumps({"layer.w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, "new": {"dtype": "I64", "shape": [], "data_offsets": [8, 16]}})
        (plain / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(16))
        made = json.loads(self.done("diff", self.checkpoints[0], plain, "--json", code=1))
        kinds = {(line["file"], line["tensor"]): (line["kind"], line["what"]) for line in made["differences"]}
        self.assertEqual(kinds["model", "layer.w"], ("shape", "F32 [6, 4] -> F32 [2]"))
        self.assertEqual(kinds["model", "layer.w.bias"], ("removed", "BF16 [3]"))
        self.assertEqual(kinds["model", "new"], ("added", "I64 []"))
        self.assertEqual(kinds["optimizer", "exp_avg.layer.w"][0], "removed")

    def test_export_writes_what_hugging_face_needs(self):
        out = self.root / "out"
        self.assertIn("config.json, vocab.txt", self.done("export", self.checkpoints[1], out))
        self.assertEqual(sorted(file.name for file in out.iterdir()), ["config.json", "model.safetensors", "vocab.txt"])
        self.assertEqual(tensors(out / "model.safetensors"), tensors(self.checkpoints[1] / "model.safetensors"))
        self.assertEqual((out / "config.json").read_bytes(), (self.checkpoints[1] / "config.json").read_bytes())
        self.refused(1, "exists already", "export", self.checkpoints[1], out)

    def test_export_converts(self):
        for dtype, name, torch, size in (("bf16", "BF16", "bfloat16", 2), ("fp16", "F16", "float16", 2), ("fp32", "F32", "float32", 4)):
            out = self.root / dtype
            self.done("export", self.checkpoints[1], out, "--dtype", dtype)
            made = tensors(out / "model.safetensors")
            self.assertEqual({key: value[0] for key, value in made.items()}, {"layer.w": name, "layer.w.bias": name})
            raw = made["layer.w"][2]
            if dtype == "bf16":
                values = [struct.unpack("<f", b"\0\0" + raw[i:i + 2])[0] for i in range(0, len(raw), size)]
            else:
                values = list(struct.unpack("<24" + ("e" if size == 2 else "f"), raw))
            self.assertEqual(values, [1.0] + [float(i) for i in range(1, 24)])
            self.assertEqual(json.loads((out / "config.json").read_text()), {"hidden_size": 4, "torch_dtype": torch})

    def test_export_writes_nothing_of_a_damaged_checkpoint(self):
        file = self.checkpoints[1] / "model.safetensors"
        self.flip(file, file.stat().st_size - 50)
        self.refused(1, "model.safetensors", "export", self.checkpoints[1], self.root / "out")
        self.assertFalse((self.root / "out").exists())
        self.assertFalse((self.root / "out.partial").exists())

    def test_prune_keeps_the_newest_or_the_best(self):
        left = lambda: sorted(path.name[-1] for path in self.run_dir.glob("checkpoint_*"))
        self.assertIn("would remove checkpoint_000000", self.done("prune", self.run_dir, "--keep", 2, "--dry-run"))
        self.assertEqual(left(), ["0", "1", "2"])
        self.assertIn("removed checkpoint_000000", self.done("prune", self.run_dir, "--keep", 1, "--score", "acc"))
        self.assertEqual(left(), ["1", "2"])  # the best, and the newest
        result = json.loads((self.run_dir / "result.json").read_text())
        self.assertEqual([record["directory"] for record in result["checkpoints"]], ["checkpoint_000001", "checkpoint_000002"])
        self.assertEqual(result["best_checkpoint"]["directory"], "checkpoint_000001")
        self.done("prune", self.run_dir, "--keep", 1)
        self.assertEqual(left(), ["2"])
        self.refused(1, "did you mean 'acc'?", "prune", self.run_dir, "--keep", 1, "--score", "ac")

    def test_wrong_words_are_one_clear_line(self):
        self.refused(2, "say what to do: ls, inspect", *[])
        self.refused(2, "'inspekt' is unknown; did you mean 'inspect'?", "inspekt")
        self.refused(2, "'--jsn' is unknown; did you mean '--json'?", "ls", self.run_dir, "--jsn")
        self.refused(2, "RUN_DIR is required", "ls")
        self.refused(2, "--keep is required", "prune", self.run_dir)
        self.refused(2, "--keep", "prune", self.run_dir, "--keep", 0)
        self.refused(1, "did you mean '" + str(self.run_dir) + "'?", "ls", self.root / "mime")
        self.refused(1, "is a run, not a checkpoint; name one of its own: checkpoint_000002, checkpoint_000001", "inspect", self.run_dir)
        self.refused(1, "is a checkpoint, not a run", "ls", self.checkpoints[0])
        self.refused(1, "there are runs in it: mine", "ls", self.root)
        self.refused(1, "is a file, not a directory", "inspect", self.checkpoints[0] / "vocab.txt")
        for part in ("ls", "inspect", "verify", "diff", "export", "prune"):
            out = self.done(part, "--help")
            self.assertIn("Usage: troupe checkpoint " + part, out)

    def test_ends_quietly_when_nobody_reads(self):
        program = subprocess.Popen([os.environ["TROUPE_PROGRAM"], "checkpoint", "inspect", self.checkpoints[0]], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        program.stdout.close()
        self.assertEqual(program.stderr.read(), b"")
        program.stderr.close()
        program.wait(timeout=20)


if __name__ == "__main__":
    unittest.main()
