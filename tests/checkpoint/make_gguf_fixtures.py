#!/usr/bin/env python3
"""Writes tests/checkpoint/gguf/ with llama.cpp's own Python package, and what must come of it by that package's numbers.

usage: make_gguf_fixtures.py OUTDIR [SMOLLM2.gguf CHECKSUMS.json]
Needs gguf 0.19, numpy, safetensors, tokenizers, sentencepiece, protobuf, xxhash (none of them to run the tests).

  types.gguf, types.safetensors    a tensor of each element type that is read, and its numbers in fp32
  llama.gguf, llama.safetensors    a Llama with a byte-level BPE, and its weights as Hugging Face has them; tokenizer.json
  spm.gguf, spm.model              the same weights, untied, biases, with a SentencePiece tokenizer; its model as sentencepiece writes it
  q4k.gguf                         a type that is not read
"""
import json
import pathlib
import sys

import gguf
import numpy as np
from safetensors.numpy import save_file

out = pathlib.Path(sys.argv[1])
out.mkdir(parents=True, exist_ok=True)
draw = np.random.default_rng(8)
T = gguf.GGMLQuantizationType
HIDDEN, HEADS, KV_HEADS, INTERMEDIATE, HEAD = 32, 2, 1, 64, 16
NAMES = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
         "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
         "token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


def add(writer, name, values, kind):
    if kind in (T.F32, T.F16):
        data = values.astype(np.float32 if kind == T.F32 else np.float16)
        writer.add_tensor(name, data)
        return data.astype(np.float32)
    data = gguf.quants.quantize(values.astype(np.float32), kind)
    writer.add_tensor(name, data, raw_dtype=kind)
    return gguf.quants.dequantize(data, kind).astype(np.float32)


def finish(writer):
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def types():
    writer = gguf.GGUFWriter(out / "types.gguf", "test")
    expected = {}
    for kind in (T.F32, T.F16, T.BF16, T.Q8_0, T.Q4_0, T.Q4_1, T.Q5_0, T.Q5_1):
        values = draw.standard_normal((3, 64)) * np.array([[1.0], [1e-6], [300.0]])
        expected[kind.name] = add(writer, kind.name, values, kind)
    finish(writer)
    save_file(expected, out / "types.safetensors")
    writer = gguf.GGUFWriter(out / "q4k.gguf", "llama")
    writer.add_tensor("odd", np.zeros((1, 144), np.uint8), raw_dtype=T.Q4_K)
    finish(writer)


def interleaved(rows, heads):
    """As llama.cpp's converter stores rows of q and k."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def plain(rows, heads):
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def model(writer, vocab, tied, bias):
    w = writer
    w.add_block_count(1), w.add_context_length(128), w.add_embedding_length(HIDDEN), w.add_feed_forward_length(INTERMEDIATE)
    w.add_head_count(HEADS), w.add_head_count_kv(KV_HEADS), w.add_rope_freq_base(12345.5), w.add_layer_norm_rms_eps(1e-5)
    w.add_vocab_size(vocab), w.add_rope_dimension_count(HEAD)
    expected = {}

    def tensor(name, shape, kind, heads=0):
        values = interleaved(draw.standard_normal(shape) * 0.2, heads) if heads else draw.standard_normal(shape) * 0.2
        read = add(w, name, values, kind)
        parts = name.split(".")
        target = f"model.layers.0.{NAMES[parts[2]]}.{parts[3]}" if parts[0] == "blk" else f"{NAMES[parts[0]]}.{parts[1]}"
        expected[target] = np.ascontiguousarray(plain(read, heads) if heads else read)

    tensor("token_embd.weight", (vocab, HIDDEN), T.Q8_0)
    for name, rows, heads, kind in (("attn_q", HEADS * HEAD, HEADS, T.Q4_1), ("attn_k", KV_HEADS * HEAD, KV_HEADS, T.Q4_0),
                                    ("attn_v", KV_HEADS * HEAD, 0, T.F16), ("attn_output", HIDDEN, 0, T.BF16)):
        tensor(f"blk.0.{name}.weight", (rows, HEADS * HEAD if name == "attn_output" else HIDDEN), kind, heads)
        if bias:
            tensor(f"blk.0.{name}.bias", (rows,), T.F32, heads)
    for name in ("attn_norm", "ffn_norm"):
        tensor(f"blk.0.{name}.weight", (HIDDEN,), T.F32)
    tensor("blk.0.ffn_gate.weight", (INTERMEDIATE, HIDDEN), T.Q5_0)
    tensor("blk.0.ffn_up.weight", (INTERMEDIATE, HIDDEN), T.Q5_1)
    tensor("blk.0.ffn_down.weight", (HIDDEN, INTERMEDIATE), T.Q8_0)
    tensor("output_norm.weight", (HIDDEN,), T.F32)
    if not tied:
        tensor("output.weight", (vocab, HIDDEN), T.F16)
    return expected


def byte_letters():
    """The characters that stand for bytes 0 to 255 in byte-level BPE."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(b) if b in shown else chr(256 + sum(1 for x in range(b) if x not in shown)) for b in range(256)]


def llama():
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    merges = ["t h", "th e", "Ġ the", "i n"]
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_letters(), *(m.replace(" ", "") for m in merges)]
    writer = gguf.GGUFWriter(out / "llama.gguf", "llama")
    expected = model(writer, len(tokens), tied=True, bias=False)
    writer.add_tokenizer_model("gpt2"), writer.add_tokenizer_pre("smollm"), writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3)), writer.add_token_merges(merges)
    writer.add_bos_token_id(1), writer.add_eos_token_id(2), writer.add_unk_token_id(0), writer.add_pad_token_id(2)
    writer.add_add_bos_token(False), writer.add_chat_template("{{ messages }} ü")
    finish(writer)
    save_file(expected, out / "llama.safetensors")
    made = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(tokens)}, merges=[tuple(m.split(" ")) for m in merges], fuse_unk=False))
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)])
    made.decoder = decoders.ByteLevel()
    made.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in tokens[:3]])
    made.save(str(out / "tokenizer.json"))


def spm():
    from sentencepiece import sentencepiece_model_pb2 as pb
    pieces = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)] + [(f"<0x{b:02X}>", 0.0, 6) for b in range(256)]
    pieces += [("▁t", -0.0, 1), ("he", -1.0, 1), ("▁the", -2.0, 1), ("▁", -3.0, 1), ("t", -4.0, 1), ("h", -5.0, 1), ("e", -6.5, 1), ("<tag>", 0.0, 4)]
    writer = gguf.GGUFWriter(out / "spm.gguf", "llama")
    save_file(model(writer, len(pieces), tied=False, bias=True), out / "spm.safetensors")
    writer.add_tokenizer_model("llama"), writer.add_tokenizer_pre("default"), writer.add_token_list([p[0] for p in pieces])
    writer.add_token_scores([p[1] for p in pieces]), writer.add_token_types([p[2] for p in pieces])
    writer.add_bos_token_id(1), writer.add_eos_token_id(2), writer.add_unk_token_id(0)
    finish(writer)
    made = pb.ModelProto()
    for text, score, kind in pieces:
        made.pieces.add(piece=text, score=score, type=kind)
    t, n = made.trainer_spec, made.normalizer_spec
    t.model_type, t.vocab_size, t.byte_fallback = pb.TrainerSpec.BPE, len(pieces), True
    t.unk_id, t.bos_id, t.eos_id, t.pad_id = 0, 1, 2, -1
    t.unk_piece, t.bos_piece, t.eos_piece = "<unk>", "<s>", "</s>"
    n.name, n.add_dummy_prefix, n.remove_extra_whitespaces, n.escape_whitespaces = "identity", True, False, True
    (out / "spm.model").write_bytes(made.SerializeToString(deterministic=True))


def bf16_bytes(values):
    bits = values.view(np.uint32).astype(np.uint64)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16).tobytes()


def checksums(source, target):
    """XXH3 of each converted tensor of SmolLM2-135M-Instruct, in fp32 and bf16."""
    import xxhash
    sums = {}
    for t in gguf.GGUFReader(source).tensors:
        values = np.asarray(gguf.quants.dequantize(t.data, t.tensor_type), np.float32).reshape(tuple(int(x) for x in reversed(t.shape)))
        parts = t.name.split(".")
        if parts[0] == "blk":
            heads = {"attn_q": 9, "attn_k": 3}.get(parts[2])
            values, name = plain(values, heads) if heads else values, f"model.layers.{parts[1]}.{NAMES[parts[2]]}.weight"
        else:
            name = f"{NAMES[parts[0]]}.weight"
        values = np.ascontiguousarray(values)
        sums[name] = [xxhash.xxh3_64_hexdigest(values.tobytes()), xxhash.xxh3_64_hexdigest(bf16_bytes(values))]
    lines = ",\n".join(f'  "{k}": {json.dumps(v)}' for k, v in sorted(sums.items()))
    pathlib.Path(target).write_text("{\n" + lines + "\n}\n")


types()
llama()
spm()
if len(sys.argv) > 2:
    checksums(sys.argv[2], sys.argv[3])
