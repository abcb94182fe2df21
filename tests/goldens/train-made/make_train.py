"""Makes goldens of training for what the reference's have not: other families, longer sequences, other adapters. Loss
and gradients are those of transformers and PEFT in float32, of the golden models and adapters, in the reference's form.

Needs torch, transformers and peft (made with 2.9.1, 4.57.6 and 0.18.1): python make_train.py [OUT]
"""

import json
import math
import sys
from pathlib import Path

import torch
from peft import PeftModel
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
GOLDENS = HERE.parent
CASES = {
    "full-mixtral": ("mixtral", None),
    "full-gemma2": ("gemma2", None),
    "full-gemma3": ("gemma3", None),
    "full-qwen3": ("qwen3", None),
    "full-phi3": ("phi3", None),
    "full-mistral": ("mistral", None),
    "full-gpt_neox-seq": ("gpt_neox-seq", None),
    "full-gpt_oss": ("gpt_oss-bf16", None),
    "patterns-qwen2": ("qwen2", "lora/lora-patterns-qwen2"),
    "dora-rslora-gpt_neox": ("gpt_neox", "lora/lora-dora-rslora-gpt_neox"),
    "gpt_oss": ("gpt_oss-bf16", "lora/lora-gpt_oss"),
    "experts-gpt_oss": ("gpt_oss-bf16", "lora-made/experts-gpt_oss"),
    "mxfp4-gpt_oss": ("gpt_oss-mxfp4", "lora/lora-gpt_oss"),
    "experts-mxfp4-gpt_oss": ("gpt_oss-mxfp4", "lora-made/experts-gpt_oss"),
    "experts-mixtral": ("mixtral", "lora-made/experts-mixtral"),
    "some-mixtral": ("mixtral", "lora-made/some-mixtral"),
    "fused-phi3": ("phi3", "lora-made/fused-phi3"),
    "head-llama": ("llama-tied", "lora-made/head-llama"),
    "saved-norms-mistral": ("mistral", "lora-made/saved-norms-mistral"),
    "modules_to_save-llama": ("llama-untied", "lora/lora-modules_to_save-llama"),
}
LENGTH, ROWS = 90, 2


def statistics(x):
    x = x.detach().double().flatten()
    cosine = torch.cos(0.37 * torch.arange(x.numel(), dtype=torch.float64))
    numbers = {"sum": x.sum(), "l2": x.norm(), "cosproj": (x * cosine).sum()}
    return {**{name: value.item() for name, value in numbers.items()}, "first4": x[:4].tolist()}


def name_in_file(name, adapter):
    if adapter:
        name = name.removeprefix("base_model.model.").replace(".default", "").replace(".modules_to_save", "")
    return name


def make(case, model, adapter, out):
    torch.manual_seed(sum(map(ord, case)))
    base = AutoModelForCausalLM.from_pretrained(
        GOLDENS / "models" / model, dtype=torch.float32, attn_implementation="eager"
    ).float()
    if adapter:
        base = PeftModel.from_pretrained(base, GOLDENS / adapter, is_trainable=True)
        for module in base.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
    base.train()
    ids = torch.randint(3, base.config.vocab_size, (1, ROWS, LENGTH))
    mask = torch.ones_like(ids)
    mask[0, 1, 61:] = 0
    labels = ids.clone()
    labels[0, :, :7] = -100
    labels[mask == 0] = -100
    loss = base(input_ids=ids[0], attention_mask=mask[0], labels=labels[0]).loss
    loss.backward()
    trained = [(name_in_file(n, adapter), p) for n, p in base.named_parameters() if p.requires_grad]
    grads = {n: statistics(p.grad if p.grad is not None else torch.zeros_like(p)) for n, p in trained}
    norm = math.sqrt(sum(g["l2"] ** 2 for g in grads.values()))
    if adapter:
        golden = {"base": model, "adapter": adapter, "quant_base": None, "loss": loss.item(), "grads": grads}
    else:
        golden = {"base": model, "full": {"loss": loss.item(), "grad_norm": norm, "grads": grads}}
    folder = out / case
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "golden.json").write_text(json.dumps(golden, separators=(",", ":")))
    tensors = {"input_ids": ids, "labels": labels, "attention_mask": mask}
    save_file({n: t.to(torch.int32).contiguous() for n, t in tensors.items()}, folder / "golden.safetensors")
    print(case, loss.item(), norm, len(grads))


if __name__ == "__main__":
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE
    for case, (model, adapter) in CASES.items():
        make(case, model, adapter, out)
