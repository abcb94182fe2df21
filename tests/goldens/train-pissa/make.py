"""Makes the golden of an adapter that begins as parts of its model (PiSSA): losses of steps of PEFT with AdamW in
float32, and what they changed. Signs of singular vectors are anybody's choice, so single matrices are not compared.

Needs torch, transformers and peft (made with 2.9.1, 4.57.6 and 0.18.1): python make.py
"""

import json
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, get_cosine_schedule_with_warmup

HERE = Path(__file__).parent
MODULES = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
STEPS = 4


def row(number):
    ids = [5 + (number * 31 + at * 7) % 90 for at in range(9 + number % 4)]
    return torch.tensor([ids]), torch.tensor([[-100 if at < 3 else token for at, token in enumerate(ids)]])


def main():
    model = AutoModelForCausalLM.from_pretrained(
        HERE.parent / "models/llama-tied", dtype=torch.float32, attn_implementation="eager"
    ).float()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    config = LoraConfig(r=4, lora_alpha=8, target_modules=MODULES, init_lora_weights="pissa", lora_dropout=0.0)
    model = get_peft_model(model, config)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01, weight_decay=0.0)
    schedule = get_cosine_schedule_with_warmup(optimizer, 1, STEPS)
    rows, losses = [[0, 1, 2, 3], [4, 5, 6]], []
    for step in range(STEPS):
        pairs = [row(number) for number in rows[step % 2]]
        count = sum((labels[:, 1:] != -100).sum().item() for _, labels in pairs)
        loss = 0.0
        for ids, labels in pairs:
            logits = model(input_ids=ids).logits[0, :-1]
            part = torch.nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum") / count
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss)
    merged = dict(model.merge_and_unload().named_parameters())
    changes = {}
    for name in ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]:
        change = merged[f"{name}.weight"] - before[f"{name}.weight"]
        changes[name] = {"l2": change.double().norm().item(), "first": change.flatten()[:32].tolist()}
    (HERE / "golden.json").write_text(json.dumps({"losses": losses, "changes": changes}, indent=1) + "\n")
    print(losses)


if __name__ == "__main__":
    main()
