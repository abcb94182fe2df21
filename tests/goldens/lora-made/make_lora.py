"""Makes small adapters with PEFT itself, over the golden models, for what the reference's adapters do not have: experts,
tied tables, whole tensors, biases. Their logits and merged rows are those of PEFT in float32.

Needs torch, safetensors, transformers and peft (made with 4.57.6 and 0.18.1): python make_lora.py
"""

import json
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

HERE = Path(__file__).parent
PARAMETERS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]

CASES = {
    "experts-gpt_oss": ("gpt_oss-bf16", dict(target_modules=["q_proj"], target_parameters=PARAMETERS, r=4)),
    "down-gpt_oss": (
        "gpt_oss-bf16",
        dict(
            target_modules=[],
            target_parameters=PARAMETERS[1:] + ["mlp.router.weight"],
            rank_pattern={"mlp.experts.down_proj": 2},
        ),
    ),
    "experts-mixtral": (
        "mixtral",
        dict(target_modules=["w1", "w2", "w3", "gate"], use_dora=True, rank_pattern={"experts.1.w1": 2}),
    ),
    "some-mixtral": ("mixtral", dict(target_modules=r".*experts\.(0|2)\.w[12]", use_rslora=True)),
    "dora-embed-gemma2": ("gemma2", dict(target_modules=["embed_tokens", "q_proj", "down_proj"], use_dora=True)),
    "embed-gemma3": ("gemma3", dict(target_modules=["embed_tokens", "o_proj"])),
    "head-llama": ("llama-tied", dict(target_modules=["lm_head", "v_proj"])),
    "saved-embed-qwen2": ("qwen2", dict(target_modules=["k_proj"], modules_to_save=["embed_tokens"])),
    "saved-norms-mistral": ("mistral", dict(target_modules=["k_proj"], modules_to_save=["input_layernorm", "norm"])),
    "fused-phi3": ("phi3", dict(target_modules="all-linear", use_dora=True)),
    "bias-qwen2": ("qwen2", dict(target_modules=["q_proj", "v_proj"], bias="all")),
    "lora_bias-gpt_neox": ("gpt_neox", dict(target_modules=["query_key_value", "dense"], lora_bias=True)),
}


def load(name):
    path = HERE.parent / "models" / name
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation="eager").eval()


for case, (name, settings) in CASES.items():
    torch.manual_seed(len(case) + 100)
    settings = {"r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "task_type": "CAUSAL_LM"} | settings
    base = load(name)
    before = {key: value.clone() for key, value in base.state_dict().items()}
    model = get_peft_model(base, LoraConfig(**settings)).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "lora_magnitude_vector" in key:
                value.mul_(1 + 0.1 * torch.randn_like(value))
            elif "lora_" in key:
                value.copy_(torch.randn_like(value) * (0.05 if "lora_A" in key or "embedding_A" in key else 0.1))
            elif "modules_to_save.default" in key or ("bias" in key and settings.get("bias") == "all"):
                value.add_(torch.randn_like(value) * 0.05)
    folder = HERE / case
    model.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = name
    config["target_modules"] = sorted(config["target_modules"]) if isinstance(config["target_modules"], list) else config["target_modules"]
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1) + "\n")
    # What is judged is what was saved.
    model = PeftModel.from_pretrained(load(name), folder).eval()
    vocab = model.config.vocab_size
    ids = torch.randint(0, vocab, (1, 33))
    with torch.no_grad():
        logits = model(ids, use_cache=False).logits[0, -8:].contiguous()
        merged = model.merge_and_unload()
        again = merged(ids, use_cache=False).logits[0, -8:]
    golden = {"input_ids": ids[0], "logits_tail": logits}
    changed = 0
    for key, value in merged.state_dict().items():
        if key in before and not torch.equal(value, before[key]):
            changed += 1
            rows = value if value.dim() < 3 else value[-1]
            golden[f"merged_rows.{key}"] = rows[:4].clone().contiguous()
    save_file(golden, folder / "golden.safetensors")
    print(case, "changed", changed, f"adapter and merged differ by {(logits - again).abs().max().item():.1e}")
