"""Eight streams at once: Bantam's daemon beside llama.cpp, in turns, on this machine.

    cargo xtask synth tinyllama --format nf4 --out DIR
    cargo bench -p bantam-benches --bench daemon --no-run        # prints where the program is
    python benches/daemon/streams.py --bench PROGRAM --model DIR --prompt 16 --rounds 5

Bantam is asked by a gRPC client over its unix socket. The rival is the loop of llama.cpp's server without the server:
one batch per step, of a token for every stream that generates and then of prompts in the order of their slots, up to
`n_batch` tokens; no HTTP, no JSON, no text, the likeliest token by llama.cpp's own sampler.
"""

import argparse
import ctypes
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time

sys.path.append(str(pathlib.Path(__file__).parents[1]))
DEFAULTS = dict(repack=True, flash=True, unified=False, batch=2048)
OTHERS = dict(repack=False, flash=False, unified=True, batch=512)


class Child:
    """A process that measures a round for every line."""

    def __init__(self, command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def round(self, line):
        # Threads of the other side that still spin go to sleep.
        time.sleep(0.5)
        print(line, file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())


class LlamaCpp:
    """The rival, with one model in memory for each way to hold its weights."""

    def __init__(self, path, threads, streams):
        import llama_cpp as library

        self.library, self.threads, self.streams = library, threads, streams
        library.llama_log_set(QUIET, ctypes.c_void_p(0))
        library.llama_backend_init()
        self.models, self.sampler = {}, library.llama_sampler_init_greedy()
        for repack in (True, False):
            params = library.llama_model_default_params()
            params.use_extra_bufts = repack
            self.models[repack] = library.llama_model_load_from_file(path.encode(), params)
            assert self.models[repack], f"llama.cpp refused {path}"

    def context(self, setting, positions):
        params = self.library.llama_context_default_params()
        params.n_seq_max = self.streams
        params.n_ctx = self.streams * ((positions + 255) // 256 * 256)
        params.n_batch, params.n_ubatch = setting["batch"], 512
        params.n_threads = params.n_threads_batch = self.threads
        params.flash_attn_type = int(setting["flash"])
        params.kv_unified = setting["unified"]
        context = self.library.llama_init_from_model(self.models[setting["repack"]], params)
        assert context, "llama.cpp gave no context"
        return context

    def round(self, setting, prompt, tokens):
        context = self.context(setting, prompt + tokens)
        self.run(context, setting["batch"], 2, 4)
        self.library.llama_memory_clear(self.library.llama_get_memory(context), True)
        found = self.run(context, setting["batch"], prompt, tokens)
        self.library.llama_free(context)
        return found

    def run(self, context, most, prompt, tokens):
        library, batch = self.library, self.library.llama_batch_init(most, 0, 1)
        unread = [ids(stream, prompt) for stream in range(self.streams)]
        length, times = [0] * self.streams, [[] for _ in unread]
        start = time.perf_counter()
        while any(len(of) < tokens for of in times):
            batch.n_tokens, rows = 0, []
            # Those that generate have one token to read; sorting is stable.
            for stream in sorted(range(self.streams), key=lambda stream: len(unread[stream]) > 1):
                while unread[stream] and batch.n_tokens < most:
                    at = batch.n_tokens
                    batch.token[at], batch.pos[at] = unread[stream].pop(0), length[stream]
                    batch.n_seq_id[at], batch.seq_id[at][0] = 1, stream
                    batch.logits[at] = not unread[stream]
                    length[stream] += 1
                    batch.n_tokens += 1
                    if not unread[stream]:
                        rows.append((stream, at))
            failed = library.llama_decode(context, batch)
            assert failed == 0, f"llama.cpp failed with {failed}"
            for stream, row in rows:
                token = library.llama_sampler_sample(self.sampler, context, row)
                times[stream].append(time.perf_counter() - start)
                if len(times[stream]) < tokens:
                    unread[stream].append(token)
        library.llama_batch_free(batch)
        gap = max(after - before for of in times for before, after in zip(of, of[1:]))
        return dict(tokens=sum(map(len, times)), seconds=max(of[-1] for of in times), first=[of[0] for of in times],
                    gap=gap)


QUIET = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(lambda *_: None)


def ids(stream, count):
    """Those of streams.rs."""
    return [((at + 1) * 7919 + stream * 104729) % 32000 for at in range(count)]


def rate(found):
    return found["tokens"] / found["seconds"]


def choose(rival, size):
    """The rival's settings with the most tokens per second, and with the earliest first tokens: one is changed at a
    time, and kept where that helps."""
    best, tried = dict(DEFAULTS), []
    for key in (None, *OTHERS):
        setting = best | ({key: OTHERS[key]} if key else {})
        found = rival.round(json.dumps([setting, *size]))
        tried.append((setting, rate(found), statistics.median(found["first"])))
        best = max(tried, key=lambda one: one[1])[0]
    return best, min(tried, key=lambda one: one[2])[0]


def spread(values, digits):
    values = [float(value) for value in values]
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} .. {max(values):.{digits}f})"


def row(name, ours, theirs, digits):
    ratios = [our / their for our, their in zip(ours, theirs)]
    print(f"| {name} | {spread(ours, digits)} | {spread(theirs, digits)} | {spread(ratios, 2)} |")


def measure(given, rival, recipe):
    size = (given.prompt, given.tokens)
    # Between rounds nobody answers the daemon's signs of life.
    settings = ["models.head=int8", "models.native_files=false", "log.level=error", "limits.keep_alive=0s",
                f"schedule.slots={given.streams}", "schedule.context=1024", *given.set]
    bantam = Child([given.bench, "streams", given.model, *settings])
    line = f"{given.streams} {given.prompt} {given.tokens}"
    bantam.round(f"{given.streams} 2 4")
    fast, early = choose(rival, size)
    ours, theirs, first = [], [], []
    for _ in range(given.rounds):
        ours.append(bantam.round(line))
        theirs.append(rival.round(json.dumps([fast, *size])))
        first.append(theirs[-1] if early == fast else rival.round(json.dumps([early, *size])))
    print(f"\n{given.streams} streams, {given.prompt} ids and {given.tokens} new tokens each, {given.threads} threads, "
          f"{recipe}; median (extremes) of {given.rounds} rounds")
    print(f"llama.cpp for tokens per second: {fast}; for first tokens: {early}\n")
    print("| | bantam | llama.cpp | ratio |\n|---|---|---|---|")
    row("tokens/s, all streams", [*map(rate, ours)], [*map(rate, theirs)], 1)
    for name, of in (("median", statistics.median), ("worst", max)):
        row(f"first token, {name} of streams, s", [of(found["first"]) for found in ours],
            [of(found["first"]) for found in first], 3)
    row("longest pause between two tokens, s", [found["gap"] for found in ours], [found["gap"] for found in theirs], 3)


def serve(path, threads, streams):
    rival = LlamaCpp(path, threads, streams)
    for line in sys.stdin:
        print(json.dumps(rival.round(*json.loads(line))), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bench", required=True, help="the built bench")
    parser.add_argument("--model", required=True, help="a checkpoint of the shape, as an absolute path")
    parser.add_argument("--recipe", default="Q4_0", help="the rival's format: Q4_0, Q4_K")
    parser.add_argument("--prompt", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--streams", type=int, default=8)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--set", nargs="*", default=[], help="more settings of the daemon, as KEY=VALUE")
    given = parser.parse_args()
    import beside
    import gguf_noise

    with tempfile.TemporaryDirectory() as scratch:
        path = pathlib.Path(scratch) / "model.gguf"
        gguf_noise.write(path, beside.SHAPES["tinyllama"], given.recipe)
        command = [sys.executable, __file__, "--rival", str(path), str(given.threads), str(given.streams)]
        measure(given, Child(command), given.recipe)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rival"]:
        serve(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
    else:
        main()
