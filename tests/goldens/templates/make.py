"""Renders our templates with transformers and writes golden.json; see README.md for the command.

The templates have the features of the published ones, in our own words. `expressions` are templates of one line.
"""

import json
import random
import sys
from datetime import datetime

from transformers.utils import chat_template_utils

NOW = "2025-03-09T07:05:03"


class Clock(datetime):
    @classmethod
    def now(cls, tz=None):
        return datetime.fromisoformat(NOW)


chat_template_utils.datetime = Clock

TEMPLATES = json.load(open(sys.path[0] + "/templates.json"))
EXPRESSIONS = open(sys.path[0] + "/expressions.txt").read().split("\n%%\n")

WORDS = ["Hello", "wie geht's", "a <b> & c", "日本語", "line\nbreak", "  spaced  ", "\ttab", "{{ not a tag }}", "é̄", "\"quoted\"",
         "back\\slash", "<think>\nso\n</think>\n\nfine", "", "\x0b", "☀️", "\u2028", "it's \"both\"", "[INST]", "42"]


def words(rng):
    return " ".join(rng.choice(WORDS) for _ in range(rng.randint(0, 4)))


def value(rng, depth=0):
    pick = rng.randrange(9 if depth < 2 else 6)
    return [lambda: rng.randint(-5, 10**12), lambda: rng.choice([0.5, 1e22, 1e-7, -3.0, 123456.789]), lambda: words(rng),
            lambda: None, lambda: rng.random() < 0.5, lambda: "x", lambda: [value(rng, depth + 1) for _ in range(rng.randint(0, 3))],
            lambda: {rng.choice("zyxab") + str(i): value(rng, depth + 1) for i in range(rng.randint(0, 3))}, lambda: {}][pick]()


def schema(rng, depth=0):
    kind = rng.choice(["string", "integer", "number", "boolean", "array", "object", ["string", "null"]])
    made = {"type": kind}
    if rng.random() < 0.6:
        made["description"] = words(rng)
    if kind == "string" and rng.random() < 0.4:
        made["enum"] = ["celsius", "fahrenheit"]
    if rng.random() < 0.3:
        made["default"] = value(rng)
    if rng.random() < 0.2:
        made["nullable"] = True
    if kind == "array" and depth < 2 and rng.random() < 0.8:
        made["items"] = schema(rng, depth + 1)
    if kind == "object" and depth < 2:
        made["properties"] = {f"p{i}": schema(rng, depth + 1) for i in range(rng.randint(0, 2))}
        made["required"] = ["p0"][: rng.randint(0, 1)]
    return made


def tool(rng, i):
    function = {"name": f"tool_{i}", "description": words(rng)}
    if rng.random() < 0.9:
        function["parameters"] = {"type": "object", "properties": {f"arg{k}": schema(rng) for k in range(rng.randint(0, 3))},
                                  "required": ["arg0"] if rng.random() < 0.7 else []}
    return {"type": "function", "function": function}


def messages(rng):
    made = []
    if rng.random() < 0.5:
        made.append({"role": rng.choice(["system", "system", "developer"]), "content": words(rng)})
    for _ in range(rng.randint(1, 4)):
        content = words(rng)
        if rng.random() < 0.2:
            content = [{"type": "text", "text": content}] + ([{"type": "image"}] if rng.random() < 0.3 else [])
        made.append({"role": "user", "content": content})
        turn = rng.random()
        if turn < 0.35:
            call = {"name": "tool_0", "arguments": {"arg0": value(rng), "b": value(rng)}}
            wrapped = {"id": f"call{rng.randint(10**8, 10**9)}", "type": "function", "function": call}
            made.append({"role": "assistant", "content": rng.choice([None, "", words(rng)]), "tool_calls": [rng.choice([wrapped, call])]})
            if rng.random() < 0.3:
                made[-1]["thinking"] = words(rng)
            made.append({"role": "tool", "content": rng.choice([words(rng), "ok"]), "tool_call_id": wrapped["id"], "name": "tool_0"})
            if rng.random() < 0.6:
                made.append({"role": "assistant", "content": words(rng)})
        elif turn < 0.85:
            made.append({"role": "assistant", "content": words(rng)})
            if rng.random() < 0.3:
                made[-1]["reasoning_content"] = words(rng)
    return made


def case(rng, name):
    made = {"template": name, "messages": messages(rng), "add_generation_prompt": rng.random() < 0.6}
    if rng.random() < 0.5:
        made["tools"] = [tool(rng, i) for i in range(rng.randint(0, 2))]
    if rng.random() < 0.4:
        made["enable_thinking"] = rng.random() < 0.5
    if rng.random() < 0.2:
        made["reasoning_effort"] = "high"
    made["bos_token"], made["eos_token"] = "<s>", "</s>"
    if rng.random() < 0.2:
        made["documents"] = [{"title": words(rng), "text": words(rng)}]
    return made


def render(source, case):
    given = {key: value for key, value in case.items() if key not in ("template", "messages", "tools")}
    try:
        rendered, _ = chat_template_utils.render_jinja_template(
            [case["messages"]], tools=case.get("tools"), chat_template=source, **given)
        return {"rendered": rendered[0]}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:200]}


def main():
    rounds, out = int(sys.argv[1]), sys.argv[2]
    rng = random.Random(int(sys.argv[3]) if len(sys.argv) > 3 else 7)
    templates, cases = dict(TEMPLATES), []
    for name, source in TEMPLATES.items():
        for _ in range(rounds):
            made = case(rng, name)
            cases.append({**made, **render(source, made)})
    fixed = {"messages": [{"role": "user", "content": "Hi é", "n": 1.0}, {"role": "assistant", "content": "Yo", "x": [1, "a'b", None, True, {"k": 2.5}]}],
             "add_generation_prompt": True, "bos_token": "<s>", "d": {"b": 1, "a": [1, 2], "items": 3, "C": None}, "text": "  The quick, brown fox\njumps over\n\n\tit  ",
             "numbers": [3, 1, 2, 10, -1], "names": ["b", "A", "c", "B"]}
    for index, source in enumerate(EXPRESSIONS):
        name = f"expression {index}"
        templates[name] = source
        cases.append({"template": name, **fixed, **render(source, fixed)})
    golden = {"now": NOW, "templates": templates, "cases": cases}
    with open(out, "w") as file:
        json.dump(golden, file, ensure_ascii=False, indent=None, separators=(",", ":"))
        file.write("\n")
    print(len(cases), "cases,", sum("error" in case for case in cases), "errors")


main()
