#!/usr/bin/env python3
"""Compares Troupe's tokenizers with the reference on random strings: a differential fuzz, run by hand.

    pip install tokenizers==0.23.3
    compare_tokenizers.py build/release/tests/examples/tokenize_lines [--strings 3000] [--seed 0] [--code-points] DIRECTORY...

A directory holds a tokenizer.json (tests/golden/tokenizers/*). Prints the first differences and exits with 1 when there are any.
Code points that Unicode assigned after version 12 are left out unless --code-points: there the two libraries' tables differ.
"""
import argparse
import json
import random
import subprocess
import sys
import unicodedata

from tokenizers import Tokenizer

BITS = ["the", "And", " God", "'s", "'LL", "'ſ", "don't", "<s>", "</s>", "<mask>", "[MASK]", "[CLS]", "<|endoftext|>", "<tag>", "<nl>", "TAG", "tagg", "newtok", "<unk>",
        "▁", " ", "  ", "\n", "\r\n", "\t", "\u00a0", "\u3000", "\u200b", "\u200d", "123", "4", "½", "²", "٣", "é", "e\u0301", "\u0323", "Å", "ﬁ", "İ", "ß", "Σ", "ς", "中文", "日本",
        "한", "ᄒ\u1161ᆫ", "😀", "👩‍👩‍👧", "🇩🇪", "\u0085", "\u2028", "\x00", "\x7f", "\ufeff", "\ufffd", "_", "-", "...", "!?", "(", "#", "$", "€", "±", "\u20dd", "th", "ae", "<0x41>"]


def known(code):
    return unicodedata.category(chr(code)) not in ("Cs", "Cn") and unicodedata.ucd_3_2_0.category(chr(code)) != "Cn"


def random_string(draw):
    out = []
    for _ in range(draw.randrange(1, 14)):
        kind = draw.random()
        if kind < 0.5:
            out.append(draw.choice(BITS))
        elif kind < 0.8:
            out.append("".join(draw.choice("abcdefghijklmnopqrstuvwxyzABCDETS '0123456789.,") for _ in range(draw.randrange(1, 9))))
        else:
            code = draw.choice([draw.randrange(0x20, 0x250), draw.randrange(0x250, 0x3000), draw.randrange(0x3000, 0x20000), draw.randrange(0xFB00, 0x10000)])
            out.append(chr(code) if known(code) else "?")
    return "".join(out)


def compare(program, directory, strings):
    reference = Tokenizer.from_file(directory + "/tokenizer.json")
    reference.no_truncation()
    reference.no_padding()
    done = subprocess.run([program, directory], input="".join(json.dumps(s) + "\n" for s in strings), capture_output=True, text=True)
    if done.returncode:
        print(f"{directory}: {done.stderr.strip()}")
        return 1
    different = 0
    for text, line in zip(strings, done.stdout.split("\n")[:-1], strict=True):
        ours, theirs = json.loads(line), reference.encode(*text) if isinstance(text, list) else reference.encode(text)
        wanted = {"ids": theirs.ids, "type_ids": theirs.type_ids, "text": reference.decode(theirs.ids), "text_with_special": reference.decode(theirs.ids, skip_special_tokens=False)}
        for key, value in wanted.items():
            if ours[key] != value:
                different += 1
                if different <= 5:
                    print(f"{directory}: {text!r}\n  {key} ours   {ours[key]!r}\n  {key} theirs {value!r}")
                    if key == "ids":
                        print("  tokens", [reference.id_to_token(i) for i in ours[key]], theirs.tokens)
                break
    print(f"{directory}: {len(strings)} strings, {different} differ")
    return different


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("program")
    parser.add_argument("directories", nargs="+")
    parser.add_argument("--strings", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--code-points", action="store_true", help="every code point between two letters instead")
    args = parser.parse_args()
    draw = random.Random(args.seed)
    if args.code_points:
        strings = [f"a{chr(c)}b {chr(c)}1" for c in range(0x110000) if not 0xD800 <= c < 0xE000]
    else:
        strings = [random_string(draw) for _ in range(args.strings)]
        strings += [[random_string(draw), random_string(draw)] for _ in range(args.strings // 10)]
    return 1 if sum([compare(args.program, d, strings) for d in args.directories]) else 0


if __name__ == "__main__":
    sys.exit(main())
