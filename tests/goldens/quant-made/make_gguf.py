"""Makes gguf-families and gguf-types: small random models, converted and quantized by llama.cpp, with logits by transformers.

    PYTHONPATH=LLAMA_CPP:LLAMA_CPP/gguf-py python make_gguf.py LLAMA_CPP TOKENIZERS OUT

LLAMA_CPP is its source tree, TOKENIZERS holds a folder with tokenizer files for every family (tests/goldens/models).
Two things are lent to the converter: the name of the pre-tokenizer, which it knows by a hash of published vocabularies,
and a tokenizer.model made of the merges in tokenizer.json.
"""
import ctypes, json, pathlib, runpy, shutil, sys, tempfile

import gguf, llama_cpp, numpy as np, torch
from safetensors.numpy import save_file
from transformers import AutoConfig, AutoModelForCausalLM

LLAMA_CPP, TOKENIZERS, OUT = map(pathlib.Path, sys.argv[1:4])
SMALL = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
             head_dim=16, max_position_embeddings=256, vocab_size=512, initializer_range=0.15)
# One model is several files.
SPLIT = ["--split-max-tensors", "9"]
WINDOW = dict(sliding_window=16)
# name: pre-tokenizer (none: scores), tokenizer's folder, what differs
FAMILIES = {
    "llama": ("llama-bpe", "llama-tied", dict(tie_word_embeddings=True, rope_theta=5e5, rope_scaling=dict(
        rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=32))),
    "mistral": (None, "mistral", dict(sliding_window=None)),
    "mixtral": (None, "mixtral", dict(num_local_experts=4, num_experts_per_tok=2, intermediate_size=32)),
    "gpt_neox": ("olmo", "gpt_neox", dict(rotary_pct=0.5, head_dim=None, hidden_act="gelu")),
    "qwen2": ("qwen2", "qwen2", dict(rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=64))),
    "qwen3": ("qwen2", "qwen3", dict(tie_word_embeddings=True)),
    "phi3": (None, "phi3", dict(num_attention_heads=2, original_max_position_embeddings=64, pad_token_id=0, rope_scaling=dict(
        type="longrope", short_factor=[1.0 + i / 8 for i in range(8)], long_factor=[2.0 + i for i in range(8)]))),
    "gemma2": (None, "gemma2", dict(WINDOW, query_pre_attn_scalar=16)),
    "gemma3_text": (None, "gemma3", dict(WINDOW, query_pre_attn_scalar=16, num_hidden_layers=7,
                                         rope_scaling=dict(rope_type="linear", factor=8.0))),
    "gpt_oss": ("gpt-4o", "gpt_oss-bf16", dict(WINDOW, num_local_experts=4, num_experts_per_tok=2, intermediate_size=32,
        rope_scaling=dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=32, truncate=False,
                          beta_fast=32.0, beta_slow=1.0))),
}


def made(family, tokenizer, extra, seed, kind="f16"):
    torch.manual_seed(seed)
    ends = {key: value for key, value in json.load(open(TOKENIZERS / tokenizer / "config.json")).items()
            if key.endswith("_token_id")}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **{**SMALL, **ends, **extra}),
                                             attn_implementation="eager")
    for name, value in model.named_parameters():
        if "norm" in name or name.endswith("bias") or "sinks" in name:
            torch.nn.init.normal_(value, 0.0 if "gemma" in family or name.endswith("bias") else 1.0, 0.2)
        value.data = value.data.to(torch.bfloat16 if kind == "bf16" else torch.float16).float()
    return model.eval()


def logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor(ids)[None]).logits[0, -8:].float().numpy()


def scored(folder):
    """A tokenizer.model of the merges in tokenizer.json."""
    from sentencepiece import sentencepiece_model_pb2 as pb
    text = json.load(open(folder / "tokenizer.json"))
    halves = [pair if isinstance(pair, list) else pair.split(" ") for pair in text["model"]["merges"]]
    rank = {a + b: at for at, (a, b) in reversed(list(enumerate(halves)))}
    added = {token["content"]: token for token in text["added_tokens"]}
    ids = {**text["model"]["vocab"], **{name: token["id"] for name, token in added.items()}}
    proto = pb.ModelProto()
    for name in sorted(ids, key=ids.get):
        kind = 1
        if name == text["model"]["unk_token"]: kind = 2
        elif name in added: kind = 3 if added[name]["special"] else 4
        elif len(name) == 6 and name.startswith("<0x"): kind = 6
        proto.pieces.add(piece=name, type=kind, score=0.0 if kind in (2, 3, 4) else float(-rank.get(name, 10**5)))
    proto.trainer_spec.model_type, proto.trainer_spec.byte_fallback = 2, True
    for key in ("unk", "bos", "eos", "pad"):
        ends = [f"<{key}>"] + {"bos": ["<s>"], "eos": ["</s>"]}.get(key, [])
        for name in (name for name in ends if name in ids):
            setattr(proto.trainer_spec, key + "_id", ids[name])
    proto.normalizer_spec.name, proto.normalizer_spec.remove_extra_whitespaces = "identity", False
    (folder / "tokenizer.model").write_bytes(proto.SerializeToString())


def converted(model, pre, tokenizer, path, kind, more=()):
    import conversion.base as base
    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: pre
    with tempfile.TemporaryDirectory() as folder:
        folder = pathlib.Path(folder)
        for file in (TOKENIZERS / tokenizer).iterdir():
            if "token" in file.name or "chat" in file.name:
                shutil.copy(file, folder)
        # In 16 bits the converter would round some sums.
        model.save_pretrained(folder)
        if pre is None:
            scored(folder)
        sys.argv = ["convert", str(folder), "--outtype", kind, "--outfile", str(path), *more]
        try:
            runpy.run_path(str(LLAMA_CPP / "convert_hf_to_gguf.py"), run_name="__main__")
        except SystemExit as end:
            assert not end.code


def families(out):
    out.mkdir(parents=True, exist_ok=True)
    goldens = {}
    for at, (family, (pre, tokenizer, extra)) in enumerate(FAMILIES.items()):
        kind = "bf16" if family in ("mistral", "qwen3") else "f16"
        model = made(family, tokenizer, extra, at, kind)
        converted(model, pre, tokenizer, out / f"model-{family}.gguf", kind, SPLIT if family == "qwen3" else ())
        ids = np.random.default_rng(at).integers(8, 500, 48)
        goldens[f"{family}.input_ids"], goldens[f"{family}.logits_tail"] = ids, logits(model, ids)
    save_file(goldens, out / "golden.safetensors")


def in_place(rows, heads):
    """Rows of heads in the order that they had before the conversion."""
    return rows.reshape(heads, rows.shape[0] // heads // 2, 2, -1).swapaxes(1, 2).reshape(rows.shape)


NAMES = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
         "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}


def decoded(path, model, kind, goldens):
    """Logits of what a file's weights decode to, and first rows of every quantized matrix."""
    state = model.state_dict()
    for tensor in gguf.GGUFReader(path).tensors:
        rows = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        module = tensor.name.split(".")[-2]
        name = {"token_embd": "model.embed_tokens", "output": "lm_head"}.get(module)
        if module in NAMES:
            name = "model.layers.0." + NAMES[module]
        if name is None:
            continue
        if module in ("attn_q", "attn_k"):
            rows = in_place(rows, 4 if module == "attn_q" else 2)
        state[name + ".weight"] = torch.from_numpy(rows.copy())
        if module == "token_embd":
            state["lm_head.weight"] = state[name + ".weight"]
        if tensor.tensor_type.name not in ("F32", "F16", "BF16"):
            goldens[f"{kind}.dequant_rows.{name}"] = rows[:2].copy()
    model.load_state_dict(state)
    goldens[f"{kind}.logits_tail"] = logits(model, goldens[f"{kind}.input_ids"])


def random_blocks(kind, shape, rng):
    """Bytes of blocks, their 16-bit scales small numbers."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = rng.integers(0, 256, (shape[0] * shape[1] // values, size), dtype=np.uint8)
    places = {"Q3_K": [108], "Q2_K": [80, 82], "Q5_K": [0, 2], "TQ1_0": [52]}[kind.name]
    for place in places:
        scale = rng.uniform(-4e-3, 4e-3, len(blocks)).astype(np.float16)
        blocks[:, place:place + 2] = scale.view(np.uint8).reshape(-1, 2)
    return blocks.reshape(shape[0], -1)


def types(out):
    out.mkdir(parents=True, exist_ok=True)
    wide = dict(hidden_size=256, intermediate_size=256, num_hidden_layers=1, head_dim=64, vocab_size=512,
                tie_word_embeddings=True, initializer_range=0.06)
    model, goldens = made("llama", "llama-tied", wide, 77), {}
    whole = out / "whole.gguf"
    converted(model, "llama-bpe", "llama-tied", whole, "f32")
    for kind in ("Q2_K", "Q5_K_M"):
        params = llama_cpp.llama_model_quantize_default_params()
        params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{kind}")
        path = out / f"model-{kind}.gguf"
        assert llama_cpp.llama_model_quantize(str(whole).encode(), str(path).encode(), ctypes.byref(params)) == 0
        goldens[f"{kind}.input_ids"] = np.arange(8, 48)
        decoded(path, model, kind, goldens)
    several = ["Q4_1", "Q5_0", "Q5_1", "Q2_K", "Q3_K", "Q5_K", "TQ1_0"]
    reader, rng = gguf.GGUFReader(whole), np.random.default_rng(5)
    writer = gguf.GGUFWriter(out / "model-several.gguf", "llama")
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            kind = field.types[0]
            writer.add_key_value(field.name, field.contents(), kind, field.types[-1] if len(field.types) > 1 else None)
    for tensor in reader.tensors:
        module = tensor.name.split(".")[-2]
        if module in NAMES:
            kind = gguf.GGMLQuantizationType[several[list(NAMES).index(module)]]
            shape = [int(size) for size in reversed(tensor.shape)]
            if kind.name in ("Q4_1", "Q5_0", "Q5_1"):
                data = gguf.quants.quantize(tensor.data, kind)
            else:
                data = random_blocks(kind, shape, rng)
            writer.add_tensor(tensor.name, data, raw_dtype=kind)
        elif module == "token_embd":
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(tensor.name, gguf.quants.quantize(tensor.data, kind), raw_dtype=kind)
        else:
            writer.add_tensor(tensor.name, tensor.data)
    writer.write_header_to_file(), writer.write_kv_data_to_file(), writer.write_tensors_to_file(), writer.close()
    goldens["several.input_ids"] = np.arange(8, 48)
    decoded(out / "model-several.gguf", model, "several", goldens)
    whole.unlink()
    save_file(goldens, out / "golden.safetensors")


families(OUT / "gguf-families")
types(OUT / "gguf-types")
