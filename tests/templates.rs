//! Chat templates against transformers: the templates of the golden models with the tokens of what they print, and
//! templates of our own with the features of the published ones (`goldens/templates`, made by its script).
//!
//! What templates must not be able to do is in `immunity.rs`.

// Helpers of a test may unwrap: a failure is a failed test.
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

use bantam_model::files::ModelFiles;
use bantam_model::template::{ChatTemplate, Conversation, Data, Now, TemplateError};
use bantam_model::tokenizer::Tokenizer;

fn goldens() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("goldens")
}

fn json(path: &str) -> Data {
    let path = goldens().join(path);
    let bytes = std::fs::read(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    Data::from_json(&bytes).unwrap()
}

fn models() -> Vec<String> {
    let folders = std::fs::read_dir(goldens().join("models")).unwrap();
    let mut models: Vec<String> =
        folders.map(|folder| folder.unwrap().file_name().into_string().unwrap()).collect();
    models.sort();
    models
}

fn text(value: &Data, key: &str) -> Option<String> {
    value.get(key).and_then(|value| value.as_str().map(str::to_owned))
}

/// Every key of a case that is not about the case itself goes to the template.
fn conversation(case: &Data, now: &str) -> Conversation {
    let own = ["name", "messages", "tools", "add_generation_prompt", "rendered", "ids", "error", "template"];
    let entries = case.entries().unwrap();
    Conversation {
        messages: case.get("messages").unwrap().items().unwrap(),
        tools: case.get("tools").and_then(|tools| tools.items()),
        arguments: entries.into_iter().filter(|(key, _)| !own.contains(&key.as_str())).collect(),
        add_generation_prompt: case.get("add_generation_prompt").unwrap().as_bool().unwrap(),
        now: Now::parse(now).unwrap(),
    }
}

#[test]
fn the_golden_models_render_as_the_original() {
    let mut cases = 0;
    for model in models() {
        let own = json(&format!("models/{model}/golden_text.json"));
        let golden = match text(&own, "same_as") {
            Some(other) => json(&format!("models/{other}/golden_text.json")),
            None => own,
        };
        let now = text(&golden, "frozen_now").unwrap();
        let files = ModelFiles::open(&goldens().join("models").join(&model)).unwrap();
        let template = ChatTemplate::of_model(&files).unwrap().unwrap();
        let config = files.tokenizer_config().unwrap();
        let map = files.special_tokens_map().unwrap();
        let tokenizer =
            Tokenizer::from_bytes(&files.require_tokenizer().unwrap(), config.as_deref(), map.as_deref());
        let tokenizer = tokenizer.unwrap();
        for case in golden.get("chat").unwrap().items().unwrap() {
            let name = text(&case, "name").unwrap();
            let rendered = template.render(&conversation(&case, &now));
            match (text(&case, "error"), rendered) {
                (Some(error), Err(TemplateError::Raised(message))) => {
                    assert_eq!(error, format!("TemplateError: {message}"), "{model} {name}");
                }
                (None, Ok(rendered)) => {
                    assert_eq!(Some(&rendered), text(&case, "rendered").as_ref(), "{model} {name}");
                    let expected = case.get("ids").unwrap().items().unwrap();
                    let expected: Vec<u32> = expected.iter().map(|id| id.as_u64().unwrap() as u32).collect();
                    assert_eq!(tokenizer.encode(&rendered, false).unwrap(), expected, "{model} {name}");
                }
                (error, rendered) => panic!("{model} {name}: expected {error:?}, found {rendered:?}"),
            }
            cases += 1;
        }
    }
    assert!(cases >= 88, "{cases}");
}

#[test]
fn templates_with_published_features_render_as_the_original() {
    let golden = json("templates/golden.json");
    let (now, templates) = (text(&golden, "now").unwrap(), golden.get("templates").unwrap());
    let templates: Vec<(String, Result<ChatTemplate, TemplateError>)> = templates
        .entries()
        .unwrap()
        .into_iter()
        .map(|(name, source)| (name, ChatTemplate::from_text(source.as_str().unwrap())))
        .collect();
    let mut wrong = Vec::new();
    let cases = golden.get("cases").unwrap().items().unwrap();
    for (index, case) in cases.iter().enumerate() {
        let name = text(case, "template").unwrap();
        let template = &templates.iter().find(|(found, _)| *found == name).unwrap().1;
        let rendered = match template {
            Ok(template) => template.render(&conversation(case, &now)).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let fits = match (text(case, "error"), &rendered) {
            // Python's words for its own errors are not ours; a template's own are.
            (Some(error), Err(message)) => {
                error.strip_prefix("TemplateError: ").is_none_or(|error| message.ends_with(error))
            }
            (None, Ok(rendered)) => text(case, "rendered").as_ref() == Some(rendered),
            _ => false,
        };
        if !fits {
            let expected = text(case, "rendered").or(text(case, "error"));
            wrong.push(format!("case {index} {name}:\nexpected {expected:?}\nfound    {rendered:?}"));
        }
    }
    assert!(cases.len() >= 100, "{}", cases.len());
    assert!(
        wrong.is_empty(),
        "{} of {}:\n{}",
        wrong.len(),
        cases.len(),
        wrong[..wrong.len().min(12)].join("\n")
    );
}
