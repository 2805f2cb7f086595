"""Tokens a second of Hugging Face's tokenizers on one thread: pairs of sentences cut at 128, vocabularies of 8,000.

usage: data_tokenizer.py prepare            writes text and tokenizers for tokenizer_bench; what is there stays
       data_tokenizer.py wordpiece|bpe      Prints {"tokens_per_s", "tokens_per_cpu_s", "tokens", "ids"}; ids is a checksum

The text is that of the comments in Python's standard library, the same for one version of Python. The faster of encode_batch and
encode_batch_fast counts.
"""
import array
import json
import os
import pathlib
import random
import re
import statistics
import sys
import sysconfig
import time
import zlib

import common

DATA = pathlib.Path(os.environ.get("TROUPE_CACHE", pathlib.Path.home() / ".cache" / "troupe")) / "bench-tokenizer"
PAIRS, VOCABULARY, MAX_LENGTH, ROUNDS = 20_000, 8_000, 128, 5


def sentences():
    plain = re.compile(r"[\w .,'()\":;-]+")
    found = []
    for file in sorted(pathlib.Path(sysconfig.get_paths()["stdlib"]).glob("*.py")):
        for line in file.read_text(errors="ignore").splitlines():
            line = line.strip().lstrip("#").strip()
            if len(line.split()) > 7 and plain.fullmatch(line):
                found.append(line)
    random.Random(1).shuffle(found)
    return found


def prepare():
    if (DATA / "pairs.json").exists():
        return
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    text = sentences()
    word = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    word.normalizer = normalizers.BertNormalizer()
    word.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    word.decoder = decoders.WordPiece()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    word.train_from_iterator(text, trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=special, show_progress=False))
    word.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(text, trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<|endoftext|>"], initial_alphabet=alphabet, show_progress=False))
    for name, tokenizer in (("wordpiece", word), ("bpe", bpe)):
        (DATA / name).mkdir(parents=True, exist_ok=True)
        tokenizer.save(str(DATA / name / "tokenizer.json"))
    pairs = [(text[i % len(text)], text[(i + len(text) // 2) % len(text)]) for i in range(PAIRS)]
    partial = DATA / "pairs.json.partial"
    partial.write_text(json.dumps(pairs))
    partial.rename(DATA / "pairs.json")


def measure(kind):
    from tokenizers import Tokenizer
    tokenizer = Tokenizer.from_file(str(DATA / kind / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_LENGTH)
    pairs = [tuple(pair) for pair in json.loads((DATA / "pairs.json").read_text())]
    ids = array.array("q")
    for encoding in tokenizer.encode_batch(pairs):
        ids.extend(encoding.ids)
    wall, cpu = [], []
    for encode in (tokenizer.encode_batch, tokenizer.encode_batch_fast):
        encode(pairs)
        runs = []
        for _ in range(ROUNDS):
            begin, cpu_begin = time.perf_counter(), time.process_time()
            encode(pairs)
            runs.append((time.perf_counter() - begin, time.process_time() - cpu_begin))
        wall.append(statistics.median(run[0] for run in runs))
        cpu.append(statistics.median(run[1] for run in runs))
    common.emit(tokens_per_s=len(ids) / min(wall), tokens_per_cpu_s=len(ids) / min(cpu), tokens=len(ids), ids=zlib.crc32(ids.tobytes()))


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in ("prepare", "wordpiece", "bpe"):
        sys.exit(__doc__)
    prepare()
    if sys.argv[1] == "prepare":
        common.emit(prepared=str(DATA))
    else:
        measure(sys.argv[1])
