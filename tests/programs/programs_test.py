"""Runs the example programs the way a user does, well and badly, on a tiny BERT and a few pairs made here."""
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

PROGRAMS = pathlib.Path(os.environ["TROUPE_PROGRAMS"])
GOLDEN = pathlib.Path(os.environ["TROUPE_GOLDEN_DIR"])
WORDS = "sun moon river stone bread water house king people field night day light voice hand".split()
HEADER = "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String\n"


def write_model(directory):
    """A random BERT with 500 tokens, and a vocabulary that spells every word above."""
    directory.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / "a_tiny_bert" / name, directory / name)
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *("##" + c for c in letters), *WORDS, "."]
    tokens += [f"[unused{i}]" for i in range(500 - len(tokens))]
    (directory / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")


def write_pairs(directory, rows=64):
    """Pairs that are the same sentence (1) or two different ones (0)."""
    directory.mkdir()
    draw = random.Random(7)
    sentence = lambda: " ".join(draw.choices(WORDS, k=6)) + "."
    for split, count in (("train", rows), ("dev", rows // 2)):
        lines = [HEADER]
        for i in range(count):
            first = sentence()
            lines.append(f"{i % 2}\t{i}\t{i}\t{first}\t{first if i % 2 else sentence()}\n")
        (directory / f"pairs_{split}.tsv").write_text("".join(lines), encoding="utf-8")


def alive(marker):
    """Processes whose command line contains `marker`."""
    found = []
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                state = (entry / "stat").read_text().rsplit(")", 1)[1].split()[0]
                if marker in (entry / "cmdline").read_text() and state != "Z":
                    found.append(int(entry.name))
            except OSError:
                pass
    return found


class Programs(unittest.TestCase):
    def setUp(self):
        self.root = pathlib.Path(tempfile.mkdtemp(prefix="troupe-programs-"))
        self.addCleanup(shutil.rmtree, self.root, ignore_errors=True)
        self.model, self.data, self.storage = self.root / "model", self.root / "data", self.root / "results"
        write_model(self.model)
        write_pairs(self.data)

    def command(self, program, *more, **replaced):
        options = {"model": self.model, "data": self.data, "storage_path": self.storage, "name": program, **replaced}
        return [str(PROGRAMS / program), *(f"--{k}={v}" for k, v in options.items()), *more]

    def run_program(self, program, *more, timeout=90, **replaced):
        return subprocess.run(self.command(program, *more, **replaced), capture_output=True, text=True, timeout=timeout)

    def result(self, name="quickstart"):
        return json.loads((self.storage / name / "result.json").read_text())

    def fails(self, done, *words):
        """It failed, in few lines, naming every one of `words`."""
        output = done.stdout + done.stderr
        self.assertNotEqual(done.returncode, 0, output)
        for word in words:
            self.assertIn(str(word), output)

    def start_long_run(self, *more):
        """A run that will not end by itself soon; returns when it has taken its first steps."""
        process = subprocess.Popen(self.command("quickstart", "--num_train_epochs=1000", *more), stdout=subprocess.PIPE,
                                   stderr=subprocess.STDOUT, text=True)
        self.addCleanup(process.stdout.close)
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        reports = self.storage / "quickstart" / "reports.jsonl"
        deadline = time.time() + 60
        while not (reports.exists() and reports.stat().st_size):
            self.assertLess(time.time(), deadline, "no report within 60 s")
            self.assertIsNone(process.poll(), "the run ended early")
            time.sleep(0.05)
        return process

    def wait_until_gone(self, seconds):
        deadline = time.time() + seconds
        while left := alive(str(self.root)):
            self.assertLess(time.time(), deadline, f"processes left behind: {left}")
            time.sleep(0.05)

    # --- the good path

    def test_quickstart_trains_reports_and_classifies(self):
        for placement in ("threads", "processes"):
            with self.subTest(placement):
                done = self.run_program("quickstart", f"--placement={placement}", "--num_train_epochs=2", name=placement)
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                self.assertIn("The best checkpoint says", done.stdout)
                result = self.result(placement)
                self.assertIsNone(result["error"])
                self.assertEqual(result["metrics"]["epoch"], 2)
                for key in ("metrics", "best_checkpoint", "history"):
                    self.assertIn(key, result)
                run = self.storage / placement
                self.assertEqual(len(list(run.glob("checkpoint_*/model.safetensors"))), 2)
        self.wait_until_gone(2)

    def test_threads_and_processes_learn_the_same(self):
        losses = []
        for placement in ("threads", "processes"):
            done = self.run_program("quickstart", f"--placement={placement}", name=placement)
            self.assertEqual(done.returncode, 0, done.stderr)
            losses.append(self.result(placement)["metrics"]["loss"])
        self.assertEqual(losses[0], losses[1])

    def test_a_deepspeed_file_shards_the_same_training(self):
        config = self.root / "zero3.json"
        config.write_text(json.dumps({"train_micro_batch_size_per_gpu": "auto", "train_batch_size": "auto", "gradient_accumulation_steps": "auto",
                                      "zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": "auto"}}))
        plain = self.run_program("quickstart", "--num_workers=2", name="plain")
        self.assertEqual(plain.returncode, 0, plain.stdout + plain.stderr)
        done = self.run_program("quickstart", "--num_workers=2", "--placement=processes", f"--deepspeed={config}", name="zero3")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("ZeRO-3", done.stdout + done.stderr)
        self.assertAlmostEqual(self.result("plain")["metrics"]["loss"], self.result("zero3")["metrics"]["loss"], places=4)
        config.write_text('{"zero_optimization": {"stagee": 3}}')
        self.fails(self.run_program("quickstart", f"--deepspeed={config}", name="wrong"), "stagee", "stage")

    def test_bert_mrpc_runs_the_guides_example(self):
        done = self.run_program("bert_mrpc", "--num_workers=2", "--num_train_epochs=2")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertEqual(self.result("bert_mrpc")["metrics"]["epoch"], 2)

    def test_bert_mrpc_streaming_learns_from_streamed_rows(self):
        done = self.run_program("bert_mrpc_streaming", "--num_workers=2", "--placement=processes", "--num_train_epochs=1")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertIn("tokenize", done.stderr)  # the stages' table
        done = self.run_program("bert_mrpc_streaming", "--num_workers=2", "--num_train_epochs=2", "--resume=must")
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
        self.assertEqual([r["metrics"]["epoch"] for r in self.result("bert_mrpc_streaming")["history"] if r["rank"] == 0], [1, 2])

    def test_a_bad_row_of_a_stream_names_file_and_line(self):
        file = self.data / "pairs_train.tsv"
        lines = file.read_text().splitlines(keepends=True)
        lines[4] = "1\t2\t3\tonly one sentence\n"
        file.write_text("".join(lines))
        self.fails(self.run_program("bert_mrpc_streaming", "--num_workers=2"), "pairs_train.tsv", "5")

    def test_embed_runs_in_a_foreign_actor_system(self):
        done = subprocess.run([str(PROGRAMS / "embed")], capture_output=True, text=True, timeout=60, cwd=self.root)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_a_run_of_the_same_name_goes_on_where_it_stopped(self):
        self.assertEqual(self.run_program("bert_mrpc", "--num_workers=2", "--num_train_epochs=1").returncode, 0)
        done = self.run_program("bert_mrpc", "--num_workers=2", "--num_train_epochs=2", "--resume=must")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual([r["metrics"]["epoch"] for r in self.result("bert_mrpc")["history"] if r["rank"] == 0], [1, 2])

    # --- mistakes

    def test_help_lists_options(self):
        done = self.run_program("quickstart", "--help")
        self.assertEqual(done.returncode, 0)
        self.assertIn("--num_workers", done.stdout)

    def test_unknown_option_names_the_nearest(self):
        self.fails(self.run_program("quickstart", "--num_worker=2"), "--num_worker", "--num_workers")

    def test_zero_and_absurd_workers_are_refused(self):
        self.fails(self.run_program("quickstart", "--num_workers=0"), "num_workers")
        self.fails(self.run_program("quickstart", "--num_workers=100000"), "num_workers")

    def test_missing_model_file_is_named(self):
        (self.model / "model.safetensors").unlink()
        self.fails(self.run_program("quickstart"), "model.safetensors")

    def test_truncated_model_file_is_named(self):
        file = self.model / "model.safetensors"
        file.write_bytes(file.read_bytes()[:-1000])
        self.fails(self.run_program("quickstart"), "model.safetensors")

    def test_wrong_vocabulary_is_named(self):
        vocabulary = (self.model / "vocab.txt").read_text() + "".join(f"extra{i}\n" for i in range(100))
        (self.model / "vocab.txt").write_text(vocabulary)
        self.fails(self.run_program("quickstart"), "vocab")

    def test_too_few_columns_name_the_line(self):
        file = self.data / "pairs_train.tsv"
        lines = file.read_text().splitlines(keepends=True)
        lines[4] = "1\t2\t3\tonly one sentence\n"
        file.write_text("".join(lines))
        self.fails(self.run_program("quickstart"), "pairs_train.tsv", "5")

    def test_missing_data_is_named(self):
        self.fails(self.run_program("quickstart", data=self.root / "nowhere"), "nowhere")

    def test_unwritable_storage_is_named(self):
        (self.root / "file").write_text("")
        self.fails(self.run_program("quickstart", storage_path=self.root / "file" / "results"), self.root / "file")

    def test_an_existing_run_is_not_overwritten(self):
        self.assertEqual(self.run_program("quickstart").returncode, 0)
        self.fails(self.run_program("quickstart", "--resume=never"), "quickstart")

    def test_too_few_descriptors_are_named(self):
        limit = f"ulimit -n 24; exec {' '.join(self.command('quickstart', '--placement=processes', '--num_workers=8'))}"
        done = subprocess.run(["bash", "-c", limit], capture_output=True, text=True, timeout=60)
        self.fails(done, "RLIMIT_NOFILE")

    # --- ends from outside

    def test_killed_driver_leaves_no_rank(self):
        process = self.start_long_run("--placement=processes")
        self.assertEqual(len(alive(str(self.root))), 3)
        process.kill()
        process.wait()
        self.wait_until_gone(5)

    def test_killed_rank_ends_the_run_with_its_signal(self):
        process = self.start_long_run("--placement=processes")
        os.kill(next(p for p in alive(str(self.root)) if p != process.pid), signal.SIGKILL)
        process.wait(30)
        error = self.result()["error"]
        self.assertEqual(error["signal"], signal.SIGKILL)
        self.assertIn(error["rank"], (0, 1))
        self.wait_until_gone(2)

    def test_interrupt_stops_at_a_step(self):
        for placement in ("threads", "processes"):
            with self.subTest(placement):
                shutil.rmtree(self.storage, ignore_errors=True)
                process = self.start_long_run(f"--placement={placement}")
                process.send_signal(signal.SIGINT)
                self.assertEqual(process.wait(30), 130)
                self.assertIsNone(self.result()["error"])
                self.wait_until_gone(2)

    def test_second_interrupt_ends_at_once(self):
        for placement in ("threads", "processes"):
            with self.subTest(placement):
                shutil.rmtree(self.storage, ignore_errors=True)
                process = self.start_long_run(f"--placement={placement}")
                process.send_signal(signal.SIGINT)
                time.sleep(0.02)
                process.send_signal(signal.SIGINT)
                self.assertIn(process.wait(4), (130, -signal.SIGINT))  # the second may come after the end, which the first brought
                self.wait_until_gone(1)


if __name__ == "__main__":
    unittest.main()
