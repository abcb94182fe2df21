//! How tools and their calls are written into a prompt. Five ways are in use; the words are the tools' own.

use bantam_model::template::{ChatTemplate, Conversation};
use serde_json::{Map, Value, json};

use super::conversation::Reason;

const BAD_TOOLS: Reason = "has tools that are no JSON list of functions with name and parameters";
const BAD_CALL: Reason = "has a function call that is no JSON object with name and arguments";
const MANY_CALLS: Reason = "calls several functions at once, which this template cannot write";

/// The ways, by the names that `tool_format` has for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum ToolFormat {
    #[default]
    Default,
    Glm4,
    Llama3,
    Mistral,
    Qwen,
}

impl ToolFormat {
    pub(super) fn of(name: &str) -> Option<Self> {
        serde_json::from_value(Value::from(name)).ok()
    }

    /// What the system's message says about tools, which are given as a JSON list.
    pub(super) fn tools(self, text: &str) -> Result<String, Reason> {
        let Ok(Value::Array(tools)) = serde_json::from_str(text) else { return Err(BAD_TOOLS) };
        if tools.is_empty() {
            return Ok(String::new());
        }
        if !tools.iter().all(Value::is_object) {
            return Err(BAD_TOOLS);
        }
        match self {
            ToolFormat::Default => plain_tools(&tools),
            ToolFormat::Glm4 => glm_tools(&tools),
            ToolFormat::Llama3 => Ok(llama_tools(&tools)),
            ToolFormat::Mistral => {
                let tools = python_json(&Value::Array(tools.iter().map(wrapped).collect()), None);
                Ok(format!("[AVAILABLE_TOOLS] {tools}[/AVAILABLE_TOOLS]"))
            }
            ToolFormat::Qwen => Ok(qwen_tools(&tools)),
        }
    }

    /// A message that calls functions: JSON, perhaps behind a thought.
    pub(super) fn calls(self, content: &str) -> Result<String, Reason> {
        let thought = thought_of(content);
        let content = match thought {
            Some(thought) => content.replace(thought, ""),
            None => content.to_owned(),
        };
        let calls = match serde_json::from_str(&content) {
            Ok(Value::Array(calls)) => calls,
            Ok(call @ Value::Object(_)) => vec![call],
            _ => return Err(BAD_CALL),
        };
        let parts =
            |call: &Value| Some((call.get("name")?.as_str()?.to_owned(), call.get("arguments")?.clone()));
        let calls: Option<Vec<(String, Value)>> = calls.iter().map(parts).collect();
        Ok(thought.unwrap_or_default().to_owned() + &self.written(&calls.ok_or(BAD_CALL)?)?)
    }

    fn written(self, calls: &[(String, Value)]) -> Result<String, Reason> {
        let named = |key: &str| -> Vec<Value> {
            calls.iter().map(|(name, arguments)| json!({ "name": name, key: arguments })).collect()
        };
        Ok(match self {
            ToolFormat::Default => {
                let lines = calls.iter().map(|(name, arguments)| {
                    format!("Action: {name}\nAction Input: {}", python_json(arguments, None))
                });
                lines.collect::<Vec<_>>().join("\n")
            }
            ToolFormat::Glm4 => match calls {
                [(name, arguments)] => format!("{name}\n{}", python_json(arguments, None)),
                _ => return Err(MANY_CALLS),
            },
            ToolFormat::Llama3 => {
                let mut calls = named("parameters");
                let calls = if calls.len() == 1 { calls.remove(0) } else { Value::Array(calls) };
                python_json(&calls, None)
            }
            ToolFormat::Mistral => python_json(&Value::Array(named("arguments")), None),
            ToolFormat::Qwen => {
                let calls = named("arguments").into_iter();
                let calls =
                    calls.map(|call| format!("<tool_call>\n{}\n</tool_call>", python_json(&call, None)));
                calls.collect::<Vec<_>>().join("\n")
            }
        })
    }
}

/// From the first `<think>` to the last `</think>`.
fn thought_of(content: &str) -> Option<&str> {
    const END: &str = "</think>";
    let start = content.find("<think>")?;
    let end = content.rfind(END).filter(|end| *end >= start)? + END.len();
    Some(&content[start..end])
}

/// A tool in the wrapping that OpenAI gives it.
fn wrapped(tool: &Value) -> Value {
    match is_wrapped(tool) {
        true => tool.clone(),
        false => json!({ "type": "function", "function": tool }),
    }
}

fn is_wrapped(tool: &Value) -> bool {
    tool.get("type").and_then(Value::as_str) == Some("function")
}

/// A tool out of it.
fn unwrapped(tool: &Value) -> Result<&Map<String, Value>, Reason> {
    let tool = if is_wrapped(tool) { tool.get("function").unwrap_or(&Value::Null) } else { tool };
    tool.as_object().ok_or(BAD_TOOLS)
}

fn name_of(tool: &Map<String, Value>) -> Result<&str, Reason> {
    tool.get("name").and_then(Value::as_str).ok_or(BAD_TOOLS)
}

/// A text as it is, everything else as JSON, nothing for nothing.
fn shown(value: Option<&Value>) -> String {
    match value {
        None => String::new(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => python_json(other, None),
    }
}

fn plain_tools(tools: &[Value]) -> Result<String, Reason> {
    let (mut text, mut names) = (String::new(), Vec::new());
    for tool in tools {
        let tool = unwrapped(tool)?;
        let name = name_of(tool)?;
        let parameters = tool.get("parameters").ok_or(BAD_TOOLS)?;
        let properties = parameters.get("properties").and_then(Value::as_object).ok_or(BAD_TOOLS)?;
        let required = parameters.get("required").and_then(Value::as_array);
        let mut arguments = String::new();
        for (argument, described) in properties {
            let is_required =
                required.is_some_and(|list| list.iter().any(|name| name.as_str() == Some(argument)));
            arguments += &plain_argument(argument, described, is_required)?;
        }
        let described = shown(tool.get("description"));
        text += &format!("> Tool Name: {name}\nTool Description: {described}\nTool Args:\n{arguments}\n");
        names.push(name);
    }
    Ok(format!(
        "You have access to the following tools:\n{text}Use the following format if using a tool:\n```\n\
         Action: tool name (one of [{}])\nAction Input: the input to the tool, in a JSON format representing the \
         kwargs (e.g. ```{{\"input\": \"hello world\", \"num_beams\": 5}}```)\n```\n",
        names.join(", ")
    ))
}

fn plain_argument(name: &str, described: &Value, is_required: bool) -> Result<String, Reason> {
    let required = if is_required { ", required" } else { "" };
    let choices = match described.get("enum").and_then(Value::as_array).filter(|list| !list.is_empty()) {
        None => String::new(),
        Some(list) => {
            let words: Option<Vec<&str>> = list.iter().map(Value::as_str).collect();
            format!(", should be one of [{}]", words.ok_or(BAD_TOOLS)?.join(", "))
        }
    };
    let items = match described.get("items").and_then(Value::as_object).filter(|items| !items.is_empty()) {
        None => String::new(),
        Some(items) => format!(", where each item should be {}", shown(items.get("type"))),
    };
    let (kind, words) = (shown(described.get("type")), shown(described.get("description")));
    Ok(format!("  - {name} ({kind}{required}): {words}{choices}{items}\n"))
}

fn glm_tools(tools: &[Value]) -> Result<String, Reason> {
    let mut text = String::new();
    for tool in tools {
        let tool = unwrapped(tool)?;
        let body = python_json(&Value::Object(tool.clone()), Some(4));
        let name = name_of(tool)?;
        text += &format!("\n\n## {name}\n\n{body}\n在调用上述函数时，请使用 Json 格式表示调用的参数。");
    }
    Ok(format!(
        "你是一个名为 ChatGLM 的人工智能助手。你是基于智谱AI训练的语言模型 GLM-4 模型开发的，\
         你的任务是针对用户的问题和要求提供适当的答复和支持。# 可用工具{text}"
    ))
}

/// It names today's date, so that the ids of a data set with tools depend on the day, there as here.
fn llama_tools(tools: &[Value]) -> String {
    let tools: Vec<String> = tools.iter().map(|tool| python_json(&wrapped(tool), Some(4)) + "\n\n").collect();
    let clock = ChatTemplate::from_text("{{ strftime_now('%d %b %Y') }}");
    let date = clock.and_then(|clock| clock.render(&Conversation::new(Vec::new()))).unwrap_or_default();
    format!(
        "Cutting Knowledge Date: December 2023\nToday Date: {date}\n\nYou have access to the following functions. \
         To call a function, please respond with JSON for a function call. Respond in the format {{\"name\": function \
         name, \"parameters\": dictionary of argument name and its value}}. Do not use variables.\n\n{}",
        tools.concat()
    )
}

fn qwen_tools(tools: &[Value]) -> String {
    let tools: Vec<String> =
        tools.iter().map(|tool| format!("\n{}", python_json(&wrapped(tool), None))).collect();
    format!(
        "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\nYou are provided with \
         function signatures within <tools></tools> XML tags:\n<tools>{}\n</tools>\n\nFor each function call, return \
         a json object with function name and arguments within <tool_call></tool_call> XML tags:\n<tool_call>\n\
         {{\"name\": <function-name>, \"arguments\": <args-json-object>}}\n</tool_call>",
        tools.concat()
    )
}

/// JSON with the spaces that Python writes; with an indent, on many lines.
fn python_json(value: &Value, indent: Option<usize>) -> String {
    let mut text = String::new();
    write_json(value, indent, 0, &mut text);
    text
}

fn write_json(value: &Value, indent: Option<usize>, depth: usize, text: &mut String) {
    let separated = |text: &mut String, open, close, items: Vec<(Option<&String>, &Value)>| {
        text.push(open);
        let count = items.len();
        for (index, (key, item)) in items.into_iter().enumerate() {
            if index > 0 {
                text.push_str(if indent.is_some() { "," } else { ", " });
            }
            break_line(indent, depth + 1, text);
            if let Some(key) = key {
                text.push_str(&Value::from(key.as_str()).to_string());
                text.push_str(": ");
            }
            write_json(item, indent, depth + 1, text);
        }
        if count > 0 {
            break_line(indent, depth, text);
        }
        text.push(close);
    };
    match value {
        Value::Array(items) => separated(text, '[', ']', items.iter().map(|item| (None, item)).collect()),
        Value::Object(items) => {
            separated(text, '{', '}', items.iter().map(|(key, item)| (Some(key), item)).collect());
        }
        other => text.push_str(&other.to_string()),
    }
}

fn break_line(indent: Option<usize>, depth: usize, text: &mut String) {
    if let Some(indent) = indent {
        text.push('\n');
        text.extend(std::iter::repeat_n(' ', indent * depth));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOLDEN: &str = include_str!("../../../tests/goldens/train-data/golden.json");

    #[test]
    fn json_is_written_as_python_does() {
        let value = json!({"a": [1, {"b": null}], "c": {}, "é": []});
        assert_eq!(python_json(&value, None), r#"{"a": [1, {"b": null}], "c": {}, "é": []}"#);
        let lines =
            "{\n  \"a\": [\n    1,\n    {\n      \"b\": null\n    }\n  ],\n  \"c\": {},\n  \"é\": []\n}";
        assert_eq!(python_json(&value, Some(2)), lines);
    }

    #[test]
    fn words_are_those_of_llama_factory() {
        let golden: Value = serde_json::from_str(GOLDEN).expect("the golden is JSON");
        let tools = golden["tools_given"].as_str().expect("the golden has tools");
        let formats = golden["tools"].as_array().expect("the golden has formats");
        assert_eq!(formats.len(), 5);
        for written in formats {
            let format = ToolFormat::of(written["format"].as_str().unwrap_or_default()).expect("it is known");
            if let Some(expected) = written["tools"].as_str() {
                assert_eq!(format.tools(tools).as_deref(), Ok(expected), "{format:?}");
            }
            let calls = golden["calls_given"].as_array().into_iter().flatten();
            for (call, expected) in calls.zip(written["calls"].as_array().into_iter().flatten()) {
                let found = format.calls(call.as_str().unwrap_or_default()).ok();
                assert_eq!(found.as_deref(), expected.as_str(), "{format:?}");
            }
        }
        let llama = ToolFormat::Llama3.tools(tools).unwrap_or_default();
        assert!(llama.contains("Today Date: ") && llama.contains("    \"type\": \"function\""), "{llama}");
    }

    #[test]
    fn calls_are_checked() {
        let call = r#"<think>x</think>{"name": "f", "arguments": {"a": 1}}"#;
        let written = "<think>x</think>Action: f\nAction Input: {\"a\": 1}";
        assert_eq!(ToolFormat::Default.calls(call).as_deref(), Ok(written));
        assert_eq!(ToolFormat::Default.calls("f(1)"), Err(BAD_CALL));
        assert_eq!(ToolFormat::Default.calls("[1]"), Err(BAD_CALL));
        assert_eq!(ToolFormat::Glm4.calls("[]"), Err(MANY_CALLS));
        for format in ["default", "glm4"].map(|name| ToolFormat::of(name).unwrap_or_default()) {
            assert_eq!(format.tools(r#"[{"a": 1}]"#), Err(BAD_TOOLS));
            assert_eq!(format.tools("{"), Err(BAD_TOOLS));
            assert_eq!(format.tools("[]").as_deref(), Ok(""));
        }
    }
}
