"""Writes a GGUF file of a published shape with noise for weights, as llama.cpp's own quantizer would lay it out.

Random blocks with sane scales are as fast as real ones, and say nothing of quality. A piece of noise is made once for
every type and written over and over: no number is quantized, so that a file takes as long as its bytes.
"""

import gguf
import numpy

TYPES = gguf.GGMLQuantizationType
PIECE = 65521  # Blocks of a piece. A prime: rows do not begin where the row before began.

# What matrices, the head and the embedding become. The quantizer of llama.cpp gives the head more bits by default.
RECIPES = {
    "F16": (TYPES.F16, TYPES.F16, TYPES.F16),
    "Q8_0": (TYPES.Q8_0, TYPES.Q8_0, TYPES.Q8_0),
    "Q4_0": (TYPES.Q4_0, TYPES.Q6_K, TYPES.Q4_0),
    "Q4_K": (TYPES.Q4_K, TYPES.Q6_K, TYPES.Q4_K),
    # The head in eight bits, as Bantam has it beside these.
    "TQ1_0": (TYPES.TQ1_0, TYPES.Q8_0, TYPES.Q8_0),
    "TQ2_0": (TYPES.TQ2_0, TYPES.Q8_0, TYPES.Q8_0),
    "MXFP4": (TYPES.Q8_0, TYPES.Q8_0, TYPES.Q8_0),  # and the experts in MXFP4
}
FILE_TYPES = {"F16": "MOSTLY_F16", "Q8_0": "MOSTLY_Q8_0", "Q4_0": "MOSTLY_Q4_0", "Q4_K": "MOSTLY_Q4_K_S",
              "TQ1_0": "MOSTLY_TQ1_0", "TQ2_0": "MOSTLY_TQ2_0", "MXFP4": "MOSTLY_MXFP4_MOE"}


def write(path, shape, recipe):
    """`shape` as in beside.py; `recipe` one of RECIPES."""
    tensors = FAMILIES[shape["family"]](shape, recipe)
    writer = gguf.GGUFWriter(path, shape["family"])
    HEADERS[shape["family"]](writer, shape)
    writer.add_file_type(getattr(gguf.LlamaFileType, FILE_TYPES[recipe]))
    writer.add_vocab_size(shape["vocab"])
    writer.add_tokenizer_model("none")
    for name, (sizes, kind) in tensors.items():
        values, bytes_of = gguf.GGML_QUANT_SIZES[kind]
        stored = sizes[:-1] + (sizes[-1] // values * bytes_of,)
        assert sizes[-1] % values == 0, f"{name}: rows of {sizes[-1]} are no whole blocks of {kind.name}"
        count = int(numpy.prod(stored))
        writer.add_tensor_info(name, stored, numpy.dtype(numpy.uint8), count, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    pieces = {}
    for sizes, kind in tensors.values():
        if len(sizes) == 1 or kind == TYPES.F32:
            writer.write_tensor_data(numpy.ones(sizes, numpy.float32))
            continue
        key = (kind, sizes[-1])
        if key not in pieces:
            pieces[key] = piece(kind, 2 / sizes[-1] ** 0.5)
        values, bytes_of = gguf.GGML_QUANT_SIZES[kind]
        writer.write_tensor_data(numpy.resize(pieces[key], int(numpy.prod(sizes)) // values * bytes_of))
    writer.close()


def piece(kind, largest):
    """Blocks whose values reach about `largest`, as bytes."""
    random = numpy.random.default_rng(1)
    if kind == TYPES.F16:
        return (random.uniform(-largest, largest, PIECE * 32)).astype(numpy.float16).view(numpy.uint8)
    blocks = random.integers(0, 256, (PIECE, gguf.GGML_QUANT_SIZES[kind][1]), dtype=numpy.uint8)

    def halves(at, value):
        scales = (value * random.uniform(0.5, 1, PIECE)).astype(numpy.float16)
        blocks[:, at:at + 2] = scales.view(numpy.uint8).reshape(PIECE, 2)

    if kind == TYPES.Q4_0:
        halves(0, largest / 8)
    elif kind == TYPES.Q8_0:
        halves(0, largest / 127)
    elif kind == TYPES.Q4_K:  # 4-bit codes times 6-bit scales, less 6-bit minima
        halves(0, largest / (63 * 8))
        halves(2, largest / 63)
    elif kind == TYPES.Q6_K:  # 6-bit codes times 8-bit scales
        halves(208, largest / (32 * 127))
    elif kind == TYPES.TQ1_0:  # five trits in a byte
        halves(52, largest)
    elif kind == TYPES.TQ2_0:  # codes of two bits, of which the fourth is none
        blocks &= ~(blocks >> 1 & 0x55)
        halves(64, largest)
    elif kind == TYPES.MXFP4:  # powers of two; the largest code is 6
        blocks[:, 0] = 127 + round(float(numpy.log2(largest / 6)))
    else:
        raise ValueError(f"no noise for {kind.name}")
    return blocks.reshape(-1)


def ends(shape, recipe):
    _, head, embedding = RECIPES[recipe]
    table = (shape["vocab"], shape["width"])
    return {"token_embd.weight": (table, embedding), "output.weight": (table, head)}


def with_biases(tensors):
    """A bias of ones for every matrix and norm."""
    found = dict(tensors)
    for name, (sizes, _) in tensors.items():
        rows = sizes if len(sizes) == 1 else sizes[:-1]
        found[name.replace(".weight", ".bias")] = (rows, TYPES.F32)
    return found


def vectors(width, *names):
    return {f"{name}.weight": ((width,), TYPES.F32) for name in names}


def llama(shape, recipe):
    width, inner, kind = shape["width"], shape["inner"], RECIPES[recipe][0]
    keys = shape["head_width"] * shape["kv_heads"]
    sizes = {"attn_q": (width, width), "attn_k": (keys, width), "attn_v": (keys, width), "attn_output": (width, width),
             "ffn_gate": (inner, width), "ffn_up": (inner, width), "ffn_down": (width, inner)}
    tensors = ends(shape, recipe) | vectors(width, "output_norm")
    for layer in range(shape["layers"]):
        tensors |= {f"blk.{layer}.{name}.weight": (size, kind) for name, size in sizes.items()}
        tensors |= vectors(width, f"blk.{layer}.attn_norm", f"blk.{layer}.ffn_norm")
    return tensors


def gptneox(shape, recipe):
    width, inner, kind = shape["width"], shape["inner"], RECIPES[recipe][0]
    sizes = {"attn_qkv": (3 * width, width), "attn_output": (width, width), "ffn_up": (inner, width),
             "ffn_down": (width, inner)}
    tensors = with_biases(vectors(width, "output_norm"))
    for layer in range(shape["layers"]):
        matrices = {f"blk.{layer}.{name}.weight": (size, kind) for name, size in sizes.items()}
        norms = vectors(width, f"blk.{layer}.attn_norm", f"blk.{layer}.ffn_norm")
        tensors |= with_biases(matrices | norms)
    return ends(shape, recipe) | tensors


def gpt_oss(shape, recipe):
    width, inner, kind = shape["width"], shape["inner"], RECIPES[recipe][0]
    query, keys = shape["head_width"] * shape["heads"], shape["head_width"] * shape["kv_heads"]
    experts, coded = shape["experts"], TYPES.MXFP4 if recipe == "MXFP4" else kind
    sizes = {"attn_q": (query, width), "attn_k": (keys, width), "attn_v": (keys, width), "attn_output": (width, query)}
    stacks = {"ffn_gate_exps": (experts, inner, width), "ffn_up_exps": (experts, inner, width),
              "ffn_down_exps": (experts, width, inner)}
    tensors = ends(shape, recipe) | vectors(width, "output_norm")
    for layer in range(shape["layers"]):
        block = f"blk.{layer}."
        matrices = {f"{block}{name}.weight": (size, kind) for name, size in sizes.items()}
        matrices |= {f"{block}{name}.weight": (size, coded) for name, size in stacks.items()}
        matrices[f"{block}ffn_gate_inp.weight"] = ((experts, width), TYPES.F32)
        tensors |= with_biases(matrices) | vectors(width, f"{block}attn_norm", f"{block}post_attention_norm")
        tensors |= vectors(shape["heads"], f"{block}attn_sinks")
    return tensors


def header(writer, shape):
    writer.add_context_length(shape["context"])
    writer.add_embedding_length(shape["width"])
    writer.add_block_count(shape["layers"])
    writer.add_feed_forward_length(shape["inner"])
    writer.add_head_count(shape["heads"])


def llama_header(writer, shape):
    header(writer, shape)
    writer.add_head_count_kv(shape["kv_heads"])
    writer.add_layer_norm_rms_eps(1e-5)


def gptneox_header(writer, shape):
    header(writer, shape)
    writer.add_layer_norm_eps(1e-5)
    writer.add_parallel_residual(True)
    writer.add_rope_dimension_count(shape["head_width"] // 4)


def gpt_oss_header(writer, shape):
    llama_header(writer, shape)
    writer.add_key_length(shape["head_width"])
    writer.add_value_length(shape["head_width"])
    writer.add_rope_freq_base(150000.0)
    writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
    writer.add_rope_scaling_factor(32.0)
    writer.add_rope_scaling_orig_ctx_len(4096)
    writer.add_sliding_window(128)
    writer.add_expert_count(shape["experts"])
    writer.add_expert_used_count(shape["chosen"])
    writer.add_expert_feed_forward_length(shape["inner"])


FAMILIES = {"llama": llama, "gptneox": gptneox, "gpt-oss": gpt_oss}
HEADERS = {"llama": llama_header, "gptneox": gptneox_header, "gpt-oss": gpt_oss_header}
