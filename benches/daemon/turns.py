"""A conversation's turns through the daemon, with what was read kept and without, in turns, on this machine.

    python benches/daemon/turns.py --bantam target/release/bantam --rounds 11

Two daemons of the same model, one of which keeps nothing (`--schedule-prefix-cache false`), are asked the same by
`bantam chat`. Greedy replies must be the same; what is told is the time to each turn's first token, without the queue.
"""

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import tempfile
import time

WAYS = {"kept": "true", "read again": "false"}
QUESTIONS = [
    "Tell me of the daemon, of files, of models, of cards and of memory, one after another, and leave nothing out.",
    "And what is a model?",
    "How do I run one?",
    "What does it cost in memory?",
    "Can I talk to it?",
]


class Daemon:
    """One that keeps what was read, or not."""

    def __init__(self, given, home, way):
        name = WAYS[way]
        self.program, self.home = given.bantam, home
        self.socket = home / f"{name}.sock"
        self.environment = dict(os.environ, HOME=str(home), XDG_RUNTIME_DIR=str(home))
        self.model = [given.model] if given.model else []
        command = [given.bantam, "serve", "--socket", self.socket, "--schedule-prefix-cache", name]
        command += ["--threads", str(given.threads)]
        with open(home / f"{name}.log", "w") as log:
            self.process = subprocess.Popen(command, env=self.environment, stdout=log, stderr=log)
        while not self.socket.exists():
            assert self.process.poll() is None, (home / f"{name}.log").read_text()
            time.sleep(0.05)

    def chat(self, number, new_tokens):
        """A conversation that nobody has had before: what each turn says of itself."""
        command = [self.program, "chat", *self.model, "--json", "--connect", f"unix:{self.socket}"]
        command += ["--temperature", "0", "--max-new-tokens", str(new_tokens), "--ignore-eos"]
        lines = [f"Number {number}: {QUESTIONS[0]}", *QUESTIONS[1:]]
        words = "\n".join(lines) + "\n"
        told = subprocess.run(command, input=words, env=self.environment, capture_output=True, text=True)
        turns = [json.loads(line) for line in told.stdout.splitlines() if line.startswith("{")]
        assert len(turns) == len(QUESTIONS), told.stderr
        return turns

    def end(self):
        self.process.terminate()
        self.process.wait()


def spread(values, form):
    return " ".join(form.format(value) for value in (statistics.median(values), min(values), max(values)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bantam", required=True, metavar="PATH", help="the program, built with --release")
    parser.add_argument("--model", metavar="MODEL", help="as `bantam chat` takes it [default: the carried one]")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--tokens", type=int, default=60, help="of every reply [default: 60]")
    given = parser.parse_args()
    given.bantam = str(pathlib.Path(given.bantam).resolve())
    with tempfile.TemporaryDirectory() as folder:
        home = pathlib.Path(folder)
        daemons = {way: Daemon(given, home, way) for way in WAYS}
        try:
            found = {way: [] for way in WAYS}
            # The first one loads the model and does not count.
            for number in range(given.rounds + 1):
                order = list(WAYS) if number % 2 else list(reversed(WAYS))
                told = {way: daemons[way].chat(number, given.tokens) for way in order}
                says = [[turn["content"] for turn in told[way]] for way in WAYS]
                assert says[0] == says[1], "replies differ"
                for way in WAYS if number else []:
                    found[way].append(told[way])
        finally:
            for daemon in daemons.values():
                daemon.end()
    print(f"{os.cpu_count()} cores, {given.threads} threads, {given.rounds} rounds in turns: ms to a first token,")
    print("and how many times as long without; each as median, least, most")
    print(f"{'turn':>4} {'tokens':>7} {'new':>5} {'kept':>26} {'read again':>26} {'times':>18}")
    for turn in range(len(QUESTIONS)):
        kept, again = ([told[turn]["timings"]["prefill_seconds"] * 1e3 for told in found[way]] for way in WAYS)
        one = found["kept"][-1][turn]
        tokens, new = one["prompt_tokens"], one["prompt_tokens"] - one["reused_tokens"]
        times = spread([slow / fast for fast, slow in zip(kept, again)], "{:5.2f}")
        print(f"{turn + 1:>4} {tokens:>7} {new:>5} {spread(kept, '{:8.1f}')} {spread(again, '{:8.1f}')} {times:>18}")


if __name__ == "__main__":
    main()
