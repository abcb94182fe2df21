"""Bantam beside other programs: the same shape and bits with made-up weights, in turns, on this machine.

    python benches/beside.py --bantam target/release/bantam --shape tinyllama --threads 1 2 --rounds 5

Needs llama_cpp with gguf and numpy, or torch and transformers (and bitsandbytes); what cannot be imported is left out.
Made-up weights tell speeds, never quality. Bantam and a rival take turns, each in a process of its own, because a
machine's speed drifts: trust the ratios of a round, not its absolute figures. README.md says how to read the tables.
"""

import argparse
import datetime
import importlib.util
import json
import os
import pathlib
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile

LLAMA = dict(family="llama", head_width=64, context=2048)
# The names are those of `bantam bench --synthetic list`.
SHAPES = {
    "tinyllama": LLAMA | dict(width=2048, inner=5632, layers=22, heads=32, kv_heads=4, vocab=32000),
    "llama-7b": LLAMA | dict(width=4096, inner=11008, layers=32, heads=32, kv_heads=32, head_width=128, vocab=32000),
    "gpt-neox-20b": dict(family="gptneox", width=6144, inner=24576, layers=44, heads=64, kv_heads=64, head_width=96,
                         vocab=50432, context=2048),
    "gpt-oss-20b": dict(family="gpt-oss", width=2880, inner=2880, layers=24, heads=64, kv_heads=8, head_width=64,
                        vocab=201088, context=131072, experts=32, chosen=4),
}
# As the published checkpoint has them: experts in MXFP4. The rest in eight bits, as the rival has it.
MIXTURE = ["--experts", "mxfp4", "--quantization", "int8", "--head", "int8"]
FIGURES = ("decode_tokens_per_s", "prefill_tokens_per_s")


def flags_of(shape, bits):
    if bits == 16:
        return []
    if bits == 2:
        return ["--quantization", "ternary", "--head", "int8"]
    # The rival's head has 6.6 bits.
    return MIXTURE if "experts" in SHAPES[shape] else ["--quantization", "nf4", "--head", "int8"]


def rivals_of(shape, bits):
    """Those that can be run here, and why others cannot."""
    if "experts" in SHAPES[shape]:
        recipes = ["F16"] if bits == 16 else ["MXFP4"]
    else:
        recipes = {16: ["F16"], 4: ["Q4_0", "Q4_K"], 2: ["TQ2_0", "TQ1_0"]}[bits]
    found = [LlamaCpp(shape, recipe) for recipe in recipes]
    if SHAPES[shape]["family"] == "llama" and bits > 2:
        found.append(Transformers(shape, nf4=bits == 4))
    return found


class Bantam:
    """A process per measurement: it makes or maps its weights, warms up, measures decode, then prefill."""

    def __init__(self, given, shape, threads):
        self.program, self.checkpoint = given.bantam, given.checkpoint
        self.flags = given.flags.split() if given.flags is not None else flags_of(shape, given.bits)
        self.model = [given.checkpoint] if given.checkpoint else ["--synthetic", shape]
        self.sizes = ["--rounds", "1", "--tokens", str(given.tokens), "--prompt-tokens", str(given.prompt),
                      "--threads", str(threads)]
        self.name = " ".join(["bantam", *self.flags])

    def prepare(self):
        """The first start writes the native file that the others map."""
        if self.checkpoint:
            self.run("bench", *self.sizes)

    def measure(self):
        if self.checkpoint:
            native = self.run("plan")["native"]
            touch(native["path"] if native else None)
        found = self.run("bench", *self.sizes)
        kept = ("peak_bytes", "weight_bytes", "cache_bytes", "bytes_per_token", "is_mapped", "seconds_to_ready",
                "seconds_to_first_token")
        spread_out = FIGURES + ("read_gb_per_s", "decode_fraction_of_read")
        return {key: found[key] for key in kept} | {key: found[key]["median"] for key in spread_out}

    def run(self, verb, *more):
        return run([self.program, verb, *self.model, *self.flags, *more, "--json"])


class Rival:
    """A process per measurement, see rivals.py."""

    def measure_job(self, **job):
        job = {"program": self.program, "path": str(self.path)} | job
        return run([sys.executable, str(pathlib.Path(__file__).with_name("rivals.py")), json.dumps(job)])

    def missing(self):
        """Packages that are not there."""
        return [package for package in self.packages if importlib.util.find_spec(package) is None]


class LlamaCpp(Rival):
    program, packages = "llama.cpp", ("llama_cpp", "gguf", "numpy")

    def __init__(self, shape, recipe):
        self.shape, self.recipe, self.name = SHAPES[shape], recipe, f"llama.cpp {recipe}"

    def prepare(self, scratch, given, threads):
        import gguf_noise

        self.path = scratch / "model.gguf"
        if not self.path.exists():
            gguf_noise.write(self.path, self.shape, self.recipe)
        self.job = dict(threads=threads, prompt=given.prompt, tokens=given.tokens)
        self.best = self.choose(self.job | dict(prompt=min(128, given.prompt), tokens=min(16, given.tokens)))

    def choose(self, job):
        """Its best setting for each figure, by two tries of each."""
        flashes, tried = [False, True, False, True], {}
        for repack in (True, False):
            touch(self.path)
            found = self.measure_job(**job, repack=repack, contexts=flashes, do=["decode", "prefill"])
            self.about = found["about"]
            for flash, figures in zip(flashes, found["contexts"]):
                for figure, value in figures.items():
                    key = figure, repack, flash
                    tried[key] = max(tried.get(key, 0), value)
        return {figure: max((key for key in tried if key[0] == figure), key=tried.get)[1:] for figure in FIGURES}

    def setting(self, figure):
        repack, flash = self.best[figure]
        return f"{'repacked' if repack else 'not repacked'}, flash attention {'on' if flash else 'off'}"

    def measure(self):
        """Memory and start are those of the setting that decodes best."""
        found = {}
        for setting in dict.fromkeys(self.best.values()):
            do = [figure.split("_")[0] for figure in FIGURES if self.best[figure] == setting]
            touch(self.path)
            job = self.job | dict(repack=setting[0], contexts=[setting[1]], do=do)
            measured = self.measure_job(**job)
            figures = measured["contexts"][0]
            found = measured | found | figures
        return {key: value for key, value in found.items() if key not in ("contexts", "about")}


class Transformers(Rival):
    program = "transformers"

    def __init__(self, shape, nf4):
        of = SHAPES[shape]
        self.nf4, self.name = nf4, "transformers " + ("bitsandbytes NF4" if nf4 else "bf16")
        self.packages = ("torch", "transformers") + (("bitsandbytes", "accelerate") if nf4 else ())
        self.config = dict(
            hidden_size=of["width"], intermediate_size=of["inner"], num_hidden_layers=of["layers"],
            num_attention_heads=of["heads"], num_key_value_heads=of["kv_heads"], vocab_size=of["vocab"],
            max_position_embeddings=of["context"], tie_word_embeddings=False, rms_norm_eps=1e-5)

    def prepare(self, scratch, given, threads):
        self.path = scratch / "transformers"
        self.job = dict(threads=threads, prompt=given.prompt, tokens=given.tokens, config=self.config, nf4=self.nf4,
                        do=["decode", "prefill"], make=False)
        if not self.path.exists():
            self.measure_job(**self.job | dict(make=True))
        self.about = self.measure_job(**self.job)["about"]

    def setting(self, _):
        return ""

    def measure(self):
        found = self.measure_job(**self.job)
        return {key: value for key, value in found.items() if key not in ("contexts", "about")} | found["contexts"][0]


def run(command):
    """The JSON that a command prints at last."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}\nfailed with {done.returncode}:\n{done.stderr[-4000:]}")
    lines = done.stdout.strip().splitlines()
    return json.loads(lines[-1]) if lines[-1].startswith("{") and len(lines) > 1 else json.loads(done.stdout)


def touch(path):
    """Reads a file: both programs start with theirs in the page cache, or neither does where it is too small."""
    if path and os.path.exists(path):
        with open(path, "rb", buffering=0) as file:
            block = bytearray(1 << 24)
            while file.readinto(block):
                pass


def machine():
    try:
        with open("/proc/cpuinfo") as file:
            cpu = next(line.split(":", 1)[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        cpu = platform.processor() or platform.machine()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    return f"{cpu}, {os.cpu_count()} cores, load average {load:.1f}, {platform.system()}"


def table(given, rival, bantam, rounds):
    """Median, least and most of both, and Bantam over the rival, round by round."""
    lines = [f"{'':<26}{'median':>9}{'least':>9}{'most':>9}   bantam/rival: median (least to most)"]

    def row(what, values, after="", digits=2):
        middle = (statistics.median(values), min(values), max(values))
        lines.append(f"{what:<26}" + "".join(f"{value:>9.{digits}f}" for value in middle) + after)

    def of(program, key, scale=1):
        return [found[program][key] * scale for found in rounds]

    for figure, what in zip(FIGURES, (f"decode {given.tokens}", f"prefill {given.prompt}")):
        ratios = [a / b for a, b in zip(of("bantam", figure), of("rival", figure))]
        text = f"   {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
        setting = rival.setting(figure)
        row(f"{what}, rival", of("rival", figure), f"   {setting}" if setting else "")
        row(f"{what}, bantam", of("bantam", figure), text)
    row("memory read, GB/s", of("bantam", "read_gb_per_s"), digits=1)
    row("share that decode reads", of("bantam", "decode_fraction_of_read"))
    first = rounds[0]["bantam"]
    beyond = max(of("bantam", "peak_bytes")) - first["weight_bytes"] - first["cache_bytes"]
    row("peak memory, GB, rival", of("rival", "peak_bytes", 1e-9))
    row("peak memory, GB, bantam", of("bantam", "peak_bytes", 1e-9),
        f"   weights, keys and values, and {beyond / 1e6:.0f} MB at most")
    for key, what in (("seconds_to_ready", "ready, s"), ("seconds_to_first_token", "first token, s")):
        row(f"{what}, rival", of("rival", key))
        row(f"{what}, bantam", of("bantam", key), "   mapped" if first["is_mapped"] else "   making up weights")
    return "\n".join(lines)


def compare(given, shape, threads, rival, scratch):
    """One rival: its best setting, then rounds in turns, each beginning with the other program."""
    bantam = Bantam(given, shape, threads)
    rival.prepare(scratch, given, threads)
    bantam.prepare()
    programs = [("bantam", bantam), ("rival", rival)]
    rounds = []
    for number in range(given.rounds):
        order = programs if number % 2 == 0 else programs[::-1]
        rounds.append({name: program.measure() for name, program in order})
    date = datetime.datetime.now().astimezone().isoformat(timespec="minutes")
    print(f"{date}  {shape}, {threads} threads: {bantam.name} beside {rival.name}, {given.rounds} rounds in turns\n"
          f"{rival.about}\n{table(given, rival, bantam, rounds)}\n", flush=True)
    return {"date": date, "shape": shape, "threads": threads, "bantam": bantam.name, "rival": rival.name,
            "about": rival.about, "settings": {figure: rival.setting(figure) for figure in FIGURES},
            "tokens": given.tokens, "prompt": given.prompt, "rounds": rounds}


def arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bantam", required=True, metavar="PATH", help="the program, built with --release")
    parser.add_argument("--shape", nargs="+", choices=SHAPES, default=["tinyllama"])
    parser.add_argument("--bits", type=int, choices=(2, 4, 16), default=4, help="of weights [default: 4]")
    parser.add_argument("--threads", type=int, nargs="+", default=[os.cpu_count()])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=32, help="tokens to write [default: 32]")
    parser.add_argument("--prompt", type=int, default=512, help="tokens to read [default: 512]")
    parser.add_argument("--rivals", metavar="TEXT", default="", help="only those whose names contain this")
    parser.add_argument("--checkpoint", metavar="DIR", help="Bantam maps this model, made by `cargo xtask synth`, "
                        "instead of making weights up: shows its start and its memory")
    parser.add_argument("--flags", metavar="FLAGS", help="Bantam's own, instead of those for the shape and bits")
    parser.add_argument("--scratch", metavar="DIR", default=tempfile.gettempdir(),
                        help="where the rival's files are made, and removed; 13 GB for 20B")
    parser.add_argument("--json", metavar="OUT", help="also writes every round as JSON")
    return parser.parse_args()


def main():
    given = arguments()
    version = subprocess.run([given.bantam, "--version"], capture_output=True, text=True, check=True).stdout.strip()
    print(f"{machine()}\n{version}, random weights\n", flush=True)
    found = []
    for shape in given.shape:
        for rival in rivals_of(shape, given.bits):
            if given.rivals not in rival.name:
                continue
            if missing := rival.missing():
                print(f"SKIPPED {rival.name}: {', '.join(missing)} cannot be imported\n", flush=True)
                continue
            scratch = pathlib.Path(tempfile.mkdtemp(prefix="beside-", dir=given.scratch))
            try:
                found += [compare(given, shape, threads, rival, scratch) for threads in given.threads]
            finally:
                shutil.rmtree(scratch)
            if given.json:
                with open(given.json, "w") as file:
                    json.dump({"machine": machine(), "version": version, "comparisons": found}, file, indent=1)


if __name__ == "__main__":
    main()
