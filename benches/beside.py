"""Bantam beside other programs: the same shape with random weights, in turns, on this machine.

    python benches/beside.py --bantam target/release/bantam --shape tinyllama --threads 2 --rounds 5

Needs torch and transformers; measures llama.cpp too where llama_cpp, gguf and numpy can be imported. Random weights
tell speeds, never quality. Every round takes bantam and all rivals in turn, because a machine's speed drifts: trust
the ratios of a round, not its absolute figures. How to read the table stands in README.md.
"""

import argparse
import datetime
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time

# The shapes' names are those of `bantam bench --synthetic list`.
SHAPES = {
    "tinyllama": dict(
        hidden_size=2048, intermediate_size=5632, num_hidden_layers=22, num_attention_heads=32,
        num_key_value_heads=4, vocab_size=32000, max_position_embeddings=2048, tie_word_embeddings=False,
        rms_norm_eps=1e-5,
    ),
}
PROMPT, TOKENS = 512, 16  # what `bantam bench` measures by default


class Bantam:
    """A process per measurement: it makes its weights, warms up, measures decode, then prefill."""

    name = "bantam bf16"

    def __init__(self, path, shape, threads):
        self.command = [path, "bench", "--synthetic", shape, "--rounds", "1", "--json", "--threads", str(threads)]
        self.about = subprocess.run([path, "--version"], capture_output=True, text=True, check=True).stdout.strip()

    def measure(self):
        found = json.loads(subprocess.run(self.command, capture_output=True, text=True, check=True).stdout)
        assert found["prompt_tokens"] == PROMPT, "bantam bench measures another length: change PROMPT"
        figures = ("prefill_tokens_per_s", "decode_tokens_per_s", "read_gb_per_s")
        return {figure: found[figure]["median"] for figure in figures}


class InProcess:
    """A rival that is measured in this process: `feed(tokens, fresh)` runs a step up to the last token's logits."""

    def measure(self):
        prompt = [i * 7919 % self.vocab for i in range(PROMPT)]
        prefill = seconds(lambda: self.feed(prompt, fresh=True))
        self.feed(prompt[:1], fresh=True)
        decode = seconds(lambda: [self.feed([token], fresh=False) for token in prompt[:TOKENS]])
        return {"prefill_tokens_per_s": PROMPT / prefill, "decode_tokens_per_s": TOKENS / decode}


class Torch(InProcess):
    name = "transformers bf16"

    def __init__(self, config, threads):
        import torch
        import transformers

        torch.set_num_threads(threads)
        torch.set_default_dtype(torch.bfloat16)
        self.torch, self.vocab, self.cache = torch, config["vocab_size"], None
        self.model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).eval()
        capability = torch.backends.cpu.get_cpu_capability()
        self.about = f"transformers {transformers.__version__}, torch {torch.__version__} ({capability})"

    def feed(self, tokens, fresh):
        with self.torch.inference_mode():
            out = self.model(self.torch.tensor([tokens]), past_key_values=None if fresh else self.cache,
                             use_cache=True, logits_to_keep=1)
        self.cache = out.past_key_values


class LlamaCpp(InProcess):
    name = "llama.cpp F16"

    def __init__(self, config, threads):
        import llama_cpp

        with tempfile.NamedTemporaryFile(suffix=".gguf") as file:
            write_gguf(file.name, config)
            self.model = llama_cpp.Llama(
                file.name, n_ctx=PROMPT + TOKENS, n_batch=PROMPT, n_threads=threads, n_threads_batch=threads,
                logits_all=False, verbose=False, use_mmap=False)
        self.vocab = config["vocab_size"]
        info = llama_cpp.llama_print_system_info().decode()
        self.about = f"llama-cpp-python {llama_cpp.__version__} ({' '.join(info.split())})"

    def feed(self, tokens, fresh):
        if fresh:
            self.model.reset()
        self.model.eval(tokens)


def write_gguf(path, config):
    """A model of this shape with random F16 weights and a vocabulary of numbers, tensor by tensor."""
    import gguf
    import numpy

    width, inner, vocab = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    keys = width // config["num_attention_heads"] * config["num_key_value_heads"]
    matrices = {"attn_q": (width, width), "attn_k": (keys, width), "attn_v": (keys, width),
                "attn_output": (width, width), "ffn_gate": (inner, width), "ffn_up": (inner, width),
                "ffn_down": (width, inner)}
    tensors = {"token_embd.weight": (vocab, width), "output.weight": (vocab, width), "output_norm.weight": (width,)}
    for layer in range(config["num_hidden_layers"]):
        tensors |= {f"blk.{layer}.{name}.weight": shape for name, shape in matrices.items()}
        tensors |= {f"blk.{layer}.{name}.weight": (width,) for name in ("attn_norm", "ffn_norm")}

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(width)
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(inner)
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_vocab_size(vocab)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([f"<{i}>" for i in range(vocab)])
    writer.add_token_scores([0.0] * vocab)
    writer.add_token_types([gguf.TokenType.NORMAL] * vocab)
    # Norms are vectors, and stay float32.
    types = {name: numpy.dtype(numpy.float16 if len(shape) == 2 else numpy.float32) for name, shape in tensors.items()}
    for name, shape in tensors.items():
        writer.add_tensor_info(name, shape, types[name], int(numpy.prod(shape)) * types[name].itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    random = numpy.random.default_rng(1)
    for name, shape in tensors.items():
        values = random.standard_normal(shape, dtype=numpy.float32) * 0.02 if len(shape) == 2 else numpy.ones(shape)
        writer.write_tensor_data(values.astype(types[name]))
    writer.close()


def seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def machine():
    try:
        with open("/proc/cpuinfo") as file:
            cpu = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return f"{cpu}, {os.cpu_count()} cores, load average {load:.1f}, {platform.system()}"


def spread(values):
    return [statistics.median(values), min(values), max(values)]


def table(rounds, names):
    """Per figure and program: median, least, most, and bantam over the program, round by round."""
    lines = [f"{'tokens per second':<34}{'median':>9}{'least':>9}{'most':>9}   bantam/program: median (least to most)"]
    for figure, title in (("prefill_tokens_per_s", f"prefill {PROMPT}"), ("decode_tokens_per_s", f"decode {TOKENS}")):
        for name in names:
            median, least, most = spread([found[name][figure] for found in rounds])
            line = f"{title + ', ' + name:<34}{median:>9.2f}{least:>9.2f}{most:>9.2f}"
            if name != Bantam.name:
                ratios = spread([found[Bantam.name][figure] / found[name][figure] for found in rounds])
                line += "   {:.2f} ({:.2f} to {:.2f})".format(*ratios)
            lines.append(line)
    reads = [found[Bantam.name]["read_gb_per_s"] for found in rounds]
    lines.append("memory read, GB/s, round by round: " + " ".join(f"{read:.1f}" for read in reads))
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bantam", required=True, metavar="PATH", help="the program, built with --release")
    parser.add_argument("--shape", choices=SHAPES, default="tinyllama")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", metavar="OUT", help="also writes every round as JSON")
    given = parser.parse_args()

    programs = [Bantam(given.bantam, given.shape, given.threads), Torch(SHAPES[given.shape], given.threads)]
    try:
        programs.append(LlamaCpp(SHAPES[given.shape], given.threads))
    except ImportError as missing:
        print(f"SKIPPED llama.cpp: {missing}\n")
    for program in programs[1:]:
        program.measure()  # page faults and sleeping cores; bantam warms itself up

    about = {
        "date": datetime.datetime.now().astimezone().isoformat(timespec="minutes"),
        "machine": machine(),
        "shape": given.shape,
        "threads": given.threads,
        "programs": {program.name: program.about for program in programs},
    }
    print(f"{about['date']}\n{about['machine']}\n{given.shape}, random weights, {given.threads} threads, "
          f"{given.rounds} rounds in turns")
    print("\n".join(f"{name}: {what}" for name, what in about["programs"].items()) + "\n", flush=True)
    rounds = []
    for number in range(given.rounds):
        # Each round begins with another program.
        order = programs[number % len(programs):] + programs[:number % len(programs)]
        rounds.append({program.name: program.measure() for program in order})
    print(table(rounds, [program.name for program in programs]))
    if given.json:
        with open(given.json, "w") as file:
            json.dump(about | {"rounds": rounds}, file, indent=1)


if __name__ == "__main__":
    main()
