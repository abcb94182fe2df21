"""Training beside the usual tools: the same checkpoint, rows and settings, in turns, on this machine.

    cargo xtask synth tinyllama --format bf16 --out FOLDER
    python benches/beside_train.py --bantam target/release/bantam --model FOLDER --kind lora --threads 2 --rounds 3

Needs torch and transformers, and peft for `--kind lora`. Supervised training of a bf16 checkpoint with gradient
checkpointing, AdamW, no accumulation. `--rival` says what the other computes in: `bf16` holds weights, gradients and
means in bfloat16; `autocast` holds all that is trained in float32 and multiplies in bfloat16, as LLaMA-Factory does
with `bf16: true`; `fp32` is for processors for which PyTorch has no fast product in bfloat16. Each program runs in a process of its own, they take turns, and each says
how long its steps took after the first, which warms up; memory is the peak of the process as the system counts it.
Made-up weights tell speeds and memory; that losses and gradients are the same is for the tests.
"""

import argparse
import json
import os
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time

RANK, TARGETS = 8, ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def rows(given, path):
    """Rows of ids that any vocabulary of 32,000 has; every token is learnt."""
    with open(path, "w") as out:
        for row in range(given.batch * (given.steps + 1)):
            ids = [3 + (row * 7919 + at * 104729) % 31000 for at in range(given.length)]
            out.write(json.dumps({"input_ids": ids, "labels": ids}) + "\n")


def peak():
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024


def child(command, threads):
    """A process alone: its output, its peak. RUSAGE_CHILDREN keeps the largest child, so each has a parent of its own."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        done = subprocess.run(command, capture_output=True, text=True,
                              env=os.environ | {"OMP_NUM_THREADS": str(threads)})
        told = {"rc": done.returncode, "out": done.stdout, "err": done.stderr[-2000:], "peak": peak()}
        with os.fdopen(writer, "w") as out:
            json.dump(told, out)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as found:
        told = json.load(found)
    os.waitpid(pid, 0)
    if told["rc"] != 0:
        sys.exit(f"{command[0]}: {told['err']}")
    return told


def bantam(given, data):
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
        output = pathlib.Path(folder, "out")
        settings = [
            "stage: sft", f"finetuning_type: {given.kind}", f"model_name_or_path: {given.model}",
            f"dataset_path: {data}", "dataset_type: tokenized", f"output_dir: {output}",
            f"cutoff_len: {given.length}", f"per_device_train_batch_size: {given.batch}", "bf16: true",
            f"max_steps: {given.steps + 1}", "learning_rate: 1.0e-5", "logging_steps: 1", "save_strategy: 'no'",
            "lr_scheduler_type: constant", "max_grad_norm: 1.0",
        ]
        if given.kind == "lora":
            settings += [f"lora_rank: {RANK}", f"lora_target: {','.join(TARGETS)}"]
        file = pathlib.Path(folder, "train.yaml")
        file.write_text("\n".join(settings + given.more) + "\n")
        told = child([given.bantam, "train", str(file), "--json", "--threads", str(given.threads)], given.threads)
        log = [json.loads(line) for line in (output / "trainer_log.jsonl").read_text().splitlines()]
    return told["peak"], [line for line in log if "loss" in line]


def bantam_speed(log):
    """From the first step's end to the last one's."""
    first, last = [(line["total_tokens"], line["total_tokens"] / line["throughput"]) for line in (log[0], log[-1])]
    return (last[0] - first[0]) / (last[1] - first[1])


def rival(given, data):
    command = [sys.executable, __file__, "--as-rival", "--model", given.model, "--kind", given.kind, "--data", data,
               "--threads", str(given.threads), "--steps", str(given.steps), "--batch", str(given.batch),
               "--length", str(given.length), "--rival", given.rival]
    told = child(command, given.threads)
    return told["peak"], json.loads(told["out"].splitlines()[-1])["tokens_per_s"]


def as_rival(given):
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    dtype = torch.float32 if given.rival == "fp32" else torch.bfloat16
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=dtype, attn_implementation="sdpa")
    model.config.use_cache = False
    if given.kind == "lora":
        from peft import LoraConfig, get_peft_model
        model = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=TARGETS,
                                                 task_type="CAUSAL_LM"))
        model.enable_input_require_grads()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if given.rival == "autocast":
        for parameter in trained:
            parameter.data = parameter.data.float()
    # What the Trainer of transformers takes with this PyTorch: all of a step in one pass.
    optimizer = torch.optim.AdamW(trained, lr=1e-5, fused=True)
    found = [json.loads(line) for line in open(given.data)]
    began = None
    for step in range(given.steps + 1):
        batch = torch.tensor([row["input_ids"] for row in found[step * given.batch:(step + 1) * given.batch]])
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=given.rival == "autocast"):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        began = began or time.perf_counter()
    seconds = time.perf_counter() - began
    print(json.dumps({"tokens_per_s": given.batch * given.length * given.steps / seconds}))


def spread(values, digits):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bantam", default="target/release/bantam")
    parser.add_argument("--model", required=True)
    parser.add_argument("--kind", choices=["lora", "full"], default="lora")
    parser.add_argument("--rival", choices=["bf16", "autocast", "fp32"], default="bf16")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2, help="that are measured, after the first")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--scratch", help="a folder for what is written")
    parser.add_argument("--more", nargs="*", default=[], help="lines for Bantam's YAML")
    parser.add_argument("--data", help=argparse.SUPPRESS)
    parser.add_argument("--as-rival", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.as_rival:
        return as_rival(given)
    with tempfile.TemporaryDirectory(dir=given.scratch) as folder:
        data = str(pathlib.Path(folder, "rows.jsonl"))
        rows(given, data)
        ours, theirs = [], []
        for round_ in range(given.rounds):
            bytes_, log = bantam(given, data)
            ours.append((bantam_speed(log), bytes_))
            bytes_, speed = rival(given, data)
            theirs.append((speed, bytes_))
            print(f"round {round_ + 1}: bantam {ours[-1][0]:.2f} tokens/s, {ours[-1][1] / 1e9:.2f} GB; "
                  f"rival {theirs[-1][0]:.2f} tokens/s, {theirs[-1][1] / 1e9:.2f} GB", flush=True)
    print(f"\n{given.kind} beside {given.rival}, {given.batch} x {given.length} tokens, {given.threads} threads, {given.rounds} rounds: "
          "medians, least and most in brackets")
    for name, found in [("bantam", ours), ("transformers", theirs)]:
        print(f"{name:14} tokens/s {spread([one[0] for one in found], 2)}, "
              f"peak GB {spread([one[1] / 1e9 for one in found], 2)}")
    print(f"{'ratio':14} tokens/s {spread([a[0] / b[0] for a, b in zip(ours, theirs)], 2)}, "
          f"peak {spread([a[1] / b[1] for a, b in zip(ours, theirs)], 2)}")


if __name__ == "__main__":
    main()
