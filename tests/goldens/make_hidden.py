"""Writes hidden.safetensors beside each golden model: what transformers calls last_hidden_state, and gives to the
head, of the first prompt.

Needs torch, safetensors and transformers (made with 4.57.6): python make_hidden.py
"""

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

# It has the values of gpt_oss-bf16 up to their quantization, which takes transformers a GPU.
LEFT_OUT = ["gpt_oss-mxfp4"]

for path in sorted(Path(__file__).parent.glob("models/*/golden.safetensors")):
    if path.parent.name in LEFT_OUT:
        continue
    golden = load_file(path)
    ids = golden["prompt0.input_ids"].long().reshape(1, -1)
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    given = []
    model.get_output_embeddings().register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[0]
    states = given[0][0].contiguous()
    difference = (logits - golden["prompt0.logits"]).abs().max().item()
    assert difference < 1e-4, f"{path}: its logits are off by {difference}"
    save_file({"prompt0.last_hidden_state": states}, path.with_name("hidden.safetensors"))
    print(path.parent.name, list(states.shape), f"logits off by {difference:.1e}")
