"""Makes the weights after Muon of ../train/sft-gpt_neox in float64; all else there is the reference's.

Where a gradient is zero (biases of keys that positions do not turn), what float32 leaves of it decides where AdamW goes:
the reference's own float32 run ends 1.2e-4 of the length of these biases away from this one, all others below 2e-7.

Needs torch and transformers (made with 2.9.1 and 4.57.6): python make_muon.py
"""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

GOLDENS = Path(__file__).parent.parent
FOLDER = GOLDENS / "train/sft-gpt_neox"


def orthogonal(matrix):
    x = matrix / (matrix.norm() + 1e-7)
    is_tall = x.size(0) > x.size(1)
    x = x.mT if is_tall else x
    for _ in range(5):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return x.mT if is_tall else x


def main():
    golden = json.loads((FOLDER / "golden.json").read_text())
    tensors, muon = load_file(FOLDER / "golden.safetensors"), golden["muon"]
    model = AutoModelForCausalLM.from_pretrained(
        GOLDENS / "models/gpt_neox", dtype=torch.float32, attn_implementation="eager"
    ).double()
    parameters, rest = dict(model.named_parameters()), muon["adamw"]
    rates = {"embed_in": rest["lr_embeddings"], "embed_out": rest["lr_lm_head"]}
    rate = lambda name: next((rates[part] for part in rates if part in name), rest["lr_rest"])
    others = [{"params": [p], "lr": rate(n)} for n, p in parameters.items() if n not in muon["muon_params"]]
    optimizer = torch.optim.AdamW(others, betas=tuple(rest["betas"]), eps=rest["eps"], weight_decay=0.0)
    momentum = {name: torch.zeros_like(parameters[name]) for name in muon["muon_params"]}
    for step in range(len(muon["steps"])):
        batch = {n: tensors[n][step].long() for n in ["input_ids", "attention_mask", "labels"]}
        model.zero_grad()
        model(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), muon["clip"])
        with torch.no_grad():
            for name, kept in momentum.items():
                weight = parameters[name]
                kept.lerp_(weight.grad, 1 - muon["momentum"])
                update = orthogonal(weight.grad.lerp(kept, muon["momentum"]))
                weight.add_(update, alpha=-muon["lr"] * max(1, weight.size(0) / weight.size(1)) ** 0.5)
        optimizer.step()
    for name, values in parameters.items():
        flat = values.detach().flatten()
        cosine = torch.cos(0.37 * torch.arange(flat.numel(), dtype=torch.float64))
        numbers = {"sum": flat.sum(), "l2": flat.norm(), "cosproj": (flat * cosine).sum()}
        muon["params"][name].update({n: x.item() for n, x in numbers.items()}, first4=flat[:4].tolist())
        for stored in [f"muon.{name}", f"muon.{name}.rows"]:
            if stored in tensors:
                kept = tensors[stored]
                tensors[stored] = flat[: kept.numel()].reshape(kept.shape).float().contiguous()
    # Statistics are there of all; of numbers, those of the biases are enough.
    tensors = {n: t for n, t in tensors.items() if "." not in n or n.startswith("muon.") and ".bias" in n}
    (FOLDER / "golden.json").write_text(json.dumps(golden, separators=(",", ":")))
    save_file(tensors, FOLDER / "golden.safetensors")


if __name__ == "__main__":
    main()
