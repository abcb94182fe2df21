//! Where templates come from, and what is said when one gives no text. What they print is compared with the original
//! in `tests/templates.rs`.

// A failure is a failed test.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::files::EmbeddedFiles;

fn of(config: &'static str, jinja: Option<&'static str>) -> Result<Option<ChatTemplate>, TemplateError> {
    let (tokenizer_config, chat_template) = (Some(config.as_bytes()), jinja.map(str::as_bytes));
    let files = EmbeddedFiles { tokenizer_config, chat_template, ..EmbeddedFiles::default() };
    ChatTemplate::of_model(&ModelFiles::embedded("the test's model", files))
}

fn rendered(template: &ChatTemplate, tools: Option<Vec<Data>>) -> String {
    let conversation = Conversation { tools, ..Conversation::new(vec![Data::message("user", "Hi")]) };
    template.render(&conversation).unwrap()
}

const NAMED: &str = r#"{"chat_template": [{"name": "default", "template": "plain"},
    {"name": "tool_use", "template": "tools {{ tools | length }}"}]}"#;

#[test]
fn the_file_wins_over_the_config_and_tools_choose_theirs() {
    assert!(of("{}", None).unwrap().is_none());
    assert!(of(r#"{"chat_template": null}"#, None).unwrap().is_none());
    let both = of(r#"{"chat_template": "config"}"#, Some("file")).unwrap().unwrap();
    assert_eq!(rendered(&both, None), "file");
    let named = of(NAMED, None).unwrap().unwrap();
    assert_eq!(rendered(&named, None), "plain");
    assert_eq!(rendered(&named, Some(vec![])), "tools 0");
    let only = of(r#"{"chat_template": [{"name": "rag", "template": "x"}]}"#, None).unwrap().unwrap();
    let error = only.render(&Conversation::new(vec![])).unwrap_err().to_string();
    assert!(error.contains("`default`, found only: rag"), "{error}");
}

#[test]
fn special_tokens_are_variables_and_arguments_win_over_them() {
    let config = r#"{"bos_token": {"content": "<s>", "lstrip": false}, "eos_token": "</s>", "pad_token": null,
        "additional_special_tokens": ["<a>", "<b>"],
        "chat_template": "{{ bos_token }}{{ eos_token }}{{ pad_token is defined }}{{ additional_special_tokens }}"}"#;
    let template = of(config, None).unwrap().unwrap();
    assert_eq!(rendered(&template, None), "<s></s>False['<a>', '<b>']");
    let arguments = vec![("eos_token".to_owned(), Data::text("!"))];
    let conversation = Conversation { arguments, ..Conversation::new(vec![]) };
    assert!(template.render(&conversation).unwrap().starts_with("<s>!False"));
}

#[test]
fn errors_name_the_place() {
    for (config, jinja, words) in [
        (r#"{"chat_template": 3}"#, None, "expected chat_template as a string or a list"),
        (r#"{"chat_template": [{"name": "default"}]}"#, None, "an entry without them"),
        ("{}", Some("\n\n{% if %}"), "chat_template.jinja, line 3: expected an expression, found `%}`"),
        (r#"{"chat_template": "{% endif %}"}"#, None, "chat_template of tokenizer_config.json, line 1"),
    ] {
        let error = of(config, jinja).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
    let template = ChatTemplate::from_text("\n{{ messages[0].name.first }}").unwrap();
    let error = template.render(&Conversation::new(vec![Data::message("user", "Hi")])).unwrap_err();
    assert!(error.to_string().contains("line 2: `name` is undefined, so it has no `first`"), "{error}");
    let template =
        ChatTemplate::from_text("{{ 1 if 1 else x | nothing }}{% if x %}{{ x is nothing }}{% endif %}");
    assert_eq!(template.unwrap().render(&Conversation::new(vec![])).unwrap(), "1");
    let template = ChatTemplate::from_text("a\n{{ x | nothing }}").unwrap();
    let error = template.render(&Conversation::new(vec![])).unwrap_err().to_string();
    assert!(error.contains("line 2: there is no filter `nothing`"), "{error}");
    let template = ChatTemplate::from_text("{{ raise_exception('no ' ~ messages | length) }}").unwrap();
    let error = template.render(&Conversation::new(vec![])).unwrap_err();
    assert!(matches!(error, TemplateError::Raised(message) if message == "no 0"));
}

#[test]
fn json_keeps_its_order_and_its_last_of_two_equal_keys() {
    let data = Data::from_json(r#"{"z": 1, "a": 2, "z": 18446744073709551615}"#.as_bytes()).unwrap();
    let style = data::Style::new(None, None, None, None).unwrap();
    let written = data::dumps(&data.0, &style, &budget::Budget::new()).unwrap();
    assert_eq!(written, r#"{"z": 18446744073709551615, "a": 2}"#);
    assert!(Data::from_json("[".repeat(100_000).as_bytes()).is_err());
}
