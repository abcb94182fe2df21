"""Makes golden.json: what LLaMA-Factory 0.9.3 makes of the files here, by its own code.

    pip download --no-deps llamafactory==0.9.3 && unzip llamafactory-0.9.3-py3-none-any.whl
    python make.py PATH_OF_THE_UNPACKED_WHEEL        (needs transformers, no torch)

What only concerns pictures, and the loading of data sets (which brings pyarrow), is put aside: rows are read here.
"""
import csv
import json
import logging
import sys
import types
from copy import deepcopy
from enum import Enum
from pathlib import Path

HERE = Path(__file__).parent
SOURCE = Path(sys.argv[1])
sys.path.insert(0, str(SOURCE))


def module(name, path=None, **entries):
    made = types.ModuleType(name)
    if path:
        made.__path__ = [str(path)]
    made.__dict__.update(entries)
    sys.modules[name] = made
    return made


class Role(str, Enum):
    USER = "user"
    ASSISTANT = "assistant"
    SYSTEM = "system"
    FUNCTION = "function"
    OBSERVATION = "observation"


class Plugin:
    def process_messages(self, messages, *_):
        return messages

    def process_token_ids(self, input_ids, labels, *_):
        return input_ids, labels


module("llamafactory", SOURCE / "llamafactory")
module("llamafactory.data", SOURCE / "llamafactory/data")
module("llamafactory.data.processor", SOURCE / "llamafactory/data/processor")
quiet = logging.getLogger("lf")
quiet.warning_rank0 = quiet.info_rank0 = quiet.warning_rank0_once = lambda *_: None
module("llamafactory.extras", logging=module("llamafactory.extras.logging", get_logger=lambda _: quiet))
module("llamafactory.extras.constants", IGNORE_INDEX=-100, DATA_CONFIG="dataset_info.json")
module("llamafactory.extras.misc", use_modelscope=lambda: False, use_openmind=lambda: False)
module("llamafactory.data.data_utils", Role=Role, SLOTS=list)
module("llamafactory.data.mm_plugin", get_mm_plugin=lambda *_, **__: Plugin(), BasePlugin=Plugin)

from transformers import AutoTokenizer  # noqa: E402

from llamafactory.data.converter import get_dataset_converter  # noqa: E402
from llamafactory.data.parser import get_dataset_list  # noqa: E402
from llamafactory.data.processor.pretrain import PretrainDatasetProcessor  # noqa: E402
from llamafactory.data.processor.supervised import (  # noqa: E402
    PackedSupervisedDatasetProcessor,
    SupervisedDatasetProcessor,
)
from llamafactory.data import template as templates  # noqa: E402

# Settings change the templates themselves.
UNTOUCHED = deepcopy(templates.TEMPLATES)
DEFAULTS = dict(
    template=None, cutoff_len=2048, train_on_prompt=False, mask_history=False, packing=None, neat_packing=False,
    tool_format=None, default_system=None, enable_thinking=True, preprocessing_batch_size=1000, max_samples=None,
    media_dir=".",
)


def tokenizer_of(model):
    return AutoTokenizer.from_pretrained(HERE.parent / "models" / model, padding_side="right")


def rows_of(path):
    if path.suffix == ".csv":
        return [{k: v or None for k, v in row.items()} for row in csv.DictReader(path.open(newline=""))]
    if path.suffix == ".txt":
        return [{"text": line.rstrip("\n")} for line in path.open()]
    text = path.read_text()
    rows = json.loads(text) if text.lstrip().startswith("[") else [json.loads(line) for line in text.splitlines()]
    columns = {column: None for row in rows for column in row}
    return [{**columns, **row} for row in rows]


def examples(case):
    settings = {**DEFAULTS, **case["settings"]}
    stage = settings.pop("stage", "sft")
    # What the settings' own classes do.
    if settings["neat_packing"]:
        settings["packing"] = True
    if settings["packing"]:
        settings["cutoff_len"] -= 1
    if settings["packing"] is None:
        settings["packing"] = stage == "pt"
    arguments = types.SimpleNamespace(**settings)
    tokenizer = tokenizer_of(case["model"])
    templates.TEMPLATES.update(deepcopy(UNTOUCHED))
    template = templates.get_template_and_fix_tokenizer(tokenizer, arguments)
    aligned = {}
    for attributes in get_dataset_list(case["dataset"], str(HERE)):
        convert = get_dataset_converter(attributes.formatting, attributes, arguments)
        for row in rows_of(HERE / attributes.dataset_name)[: arguments.max_samples]:
            for key, value in convert(row).items():
                aligned.setdefault(key, []).append(value)
    kind = {"pt": PretrainDatasetProcessor, "sft": SupervisedDatasetProcessor}[stage]
    if stage == "sft" and arguments.packing:
        kind = PackedSupervisedDatasetProcessor
    processor = kind(template=template, tokenizer=tokenizer, processor=None, data_args=arguments)
    size = arguments.preprocessing_batch_size
    found = []
    for start in range(0, len(aligned["_prompt"]), size):
        batch = {key: values[start : start + size] for key, values in aligned.items()}
        made = processor.preprocess_dataset(batch)
        keys = [key for key in ("input_ids", "labels", "attention_mask", "position_ids") if key in made]
        if not arguments.neat_packing:
            keys.remove("attention_mask")  # ones
        found += [{key: made[key][i] for key in keys} for i in range(len(made["input_ids"]))]
    return found


TALK = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello!"},
    {"role": "user", "content": " 2+2?"},
    {"role": "assistant", "content": "4"},
]
FITTING = {
    "llama-tied": ["llama3", "skywork_o1"],
    "qwen3": ["qwen", "qwen3", "chatml", "yi", "smollm2", "marco", "mimo"],
    "gemma2": ["gemma", "gemma3"],
    "gpt_neox": ["default", "alpaca", "vicuna", "fewshot"],
    "llama-untied": None,
}


def spelled():
    """Every template in the vocabulary that has none of their tokens, and the usual ones in fitting ones."""
    known = json.loads((HERE.parents[2] / "train/src/data/templates.json").read_text())
    found = []
    for model, names in FITTING.items():
        for name in names or [entry["name"] for entry in known]:
            tokenizer = tokenizer_of(model)
            template = UNTOUCHED.get(name)
            slots = template and sum((f.slots for f in (template.format_prefix, template.format_user)), [])
            if not template or any(isinstance(slot, dict) for slot in slots):
                continue
            # Words that the vocabulary lacks would be added to it, and the model with them.
            if all(word in tokenizer.get_vocab() for word in template.stop_words):
                template.fix_special_tokens(tokenizer)
            for system in ("", "Be nice."):
                pairs = template.encode_multiturn(tokenizer, TALK, system, "")
                found.append({"model": model, "template": name, "system": system, "pairs": pairs})
    return found


TOOLS = json.dumps([
    {"name": "add", "description": "Adds.", "parameters": {"type": "object", "properties": {
        "a": {"type": "number", "description": "é"}, "how": {"type": "string", "enum": ["fast", "slow"]},
        "l": {"type": "array", "items": {"type": "string"}}}, "required": ["a"]}},
    {"type": "function", "function": {"name": "now", "description": "", "parameters": {"properties": {}}}},
])
CALLS = [
    '{"name": "add", "arguments": {"a": 1, "l": ["x", null]}}',
    '<think>Hm.</think>[{"name": "add", "arguments": {}}, {"name": "now", "arguments": {"z": 1.5}}]',
]


def tools():
    found = []
    for name, utils in templates.ToolFormatter.__init__.__globals__["get_tool_utils"].__globals__["TOOLS"].items():
        formatter = templates.FunctionFormatter(slots=["{{content}}"], tool_format=name)
        written = None if name == "llama3" else utils.tool_formatter(json.loads(TOOLS))  # names today's date
        calls = []
        for call in CALLS:
            try:
                calls.append(formatter.apply(content=call)[0])
            except ValueError:
                calls.append(None)
        found.append({"format": name, "tools": written, "calls": calls})
    return found


def compact(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def main():
    cases = json.loads((HERE / "cases.json").read_text())
    lines = [f'"{key}":[\n' + ",\n".join(map(compact, values)) + "\n]" for key, values in (
        ("cases", [{**case, "examples": examples(case)} for case in cases]),
        ("spelled", spelled()),
        ("tools", tools()),
    )]
    lines += [f'"tools_given":{compact(TOOLS)}', f'"calls_given":{compact(CALLS)}', f'"talk":{compact(TALK)}']
    (HERE / "golden.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


main()
