//! Every number of every request with every value that hurts: refused by its field, or answered; what a refused request
//! leaves behind is nothing. The fields are taken from the protocol's own description, so that none is forgotten.

use bantam_daemon::settings::Settings;
use bantam_proto::{DESCRIPTORS, v1};
use prost::Message;
use prost_types::field_descriptor_proto::Type;
use prost_types::{DescriptorProto, FileDescriptorSet};
use tonic::{Code, Status};

use super::raw::{call, field, varint};
use super::{Holdings, emptied, explains, is_serving, panics, released};
use crate::support::served::{Served, asked, fields};

/// A method that takes requests: its path, and the type of its request.
pub(super) struct Method {
    pub(super) path: String,
    input: String,
}

/// All messages and methods of the protocol.
pub(super) struct Protocol {
    messages: Vec<(String, DescriptorProto)>,
    pub(super) methods: Vec<Method>,
}

/// A number in a request.
pub(super) struct Number {
    /// As refusals name it.
    name: String,
    /// The fields that lead to it, the number's own last.
    path: Vec<u32>,
    kind: Type,
}

impl Protocol {
    pub(super) fn read() -> Self {
        let files = FileDescriptorSet::decode(DESCRIPTORS).unwrap().file;
        let (mut messages, mut methods) = (Vec::new(), Vec::new());
        for file in files {
            let package = file.package().to_owned();
            for message in file.message_type {
                messages.push((format!(".{package}.{}", message.name()), message));
            }
            for service in file.service.iter().filter(|_| package == "bantam.v1") {
                let method = |method: &prost_types::MethodDescriptorProto| Method {
                    path: format!("/{package}.{}/{}", service.name(), method.name()),
                    input: method.input_type().to_owned(),
                };
                methods.extend(service.method.iter().map(method));
            }
        }
        Protocol { messages, methods }
    }

    pub(super) fn numbers(&self, method: &Method) -> Vec<Number> {
        let mut found = Vec::new();
        self.collect(&method.input, "", &[], &mut found);
        found
    }

    fn collect(&self, message: &str, name: &str, path: &[u32], found: &mut Vec<Number>) {
        let Some((_, message)) = self.messages.iter().find(|(known, _)| known == message) else { return };
        for one in message.field.iter().filter(|_| path.len() < 4) {
            let name = if name.is_empty() { one.name().to_owned() } else { format!("{name}.{}", one.name()) };
            let path = [path, &[one.number() as u32]].concat();
            match one.r#type() {
                Type::Message => self.collect(one.type_name(), &name, &path, found),
                Type::String | Type::Bytes | Type::Bool | Type::Group => {}
                kind => found.push(Number { name, path, kind }),
            }
        }
    }
}

impl Number {
    fn is_real(&self) -> bool {
        matches!(self.kind, Type::Double | Type::Float)
    }

    /// The value on the wire, in all messages that lead to it.
    fn write(&self, wire: u8, bytes: &[u8]) -> Vec<u8> {
        let (last, outer) = self.path.split_last().unwrap();
        outer.iter().rev().fold(field(*last, wire, bytes), |inner, &number| field(number, 2, &inner))
    }

    /// Values that hurt, and whether they may never be taken.
    pub(super) fn values(&self) -> Vec<(String, Vec<u8>, bool)> {
        if self.is_real() {
            let values = [0.0, -1.0, f64::NAN, f64::INFINITY, f64::NEG_INFINITY, f64::MAX, 1e-300];
            let one = |value: f64| {
                let never = value.is_nan() || value == f64::INFINITY;
                let bytes = match self.kind {
                    Type::Double => self.write(1, &value.to_le_bytes()),
                    _ => self.write(5, &(value as f32).to_le_bytes()),
                };
                (value.to_string(), bytes, never)
            };
            return values.map(one).to_vec();
        }
        let values = [0, -1, 1, i64::from(i32::MAX), i64::from(u32::MAX), i64::MAX, i64::MIN];
        // No value of an enumeration; on the wire it is cut to 32 bits.
        let never = |value: i64| self.kind == Type::Enum && ((value as i32) < 0 || value as i32 == i32::MAX);
        values.map(|value| (value.to_string(), self.write(0, &varint(value as u64)), never(value))).to_vec()
    }
}

/// A request that is answered. The small golden model answers soonest.
pub(super) fn sound(path: &str) -> Vec<u8> {
    const MODEL: &str = "qwen3";
    let model = MODEL.to_owned();
    match path.rsplit('/').next().unwrap() {
        "Generate" => asked(MODEL, "Once", 2, 1).encode_to_vec(),
        "Chat" => {
            let content = Some("Hi".to_owned());
            let message = v1::ChatMessage { role: "user".to_owned(), content, ..Default::default() };
            let (messages, max_new_tokens) = (vec![message], Some(2));
            v1::ChatRequest { model, messages, max_new_tokens, ..Default::default() }.encode_to_vec()
        }
        "Tokenize" => {
            let input = Some(v1::tokenize_request::Input::Text("Once".to_owned()));
            v1::TokenizeRequest { model, input, ..Default::default() }.encode_to_vec()
        }
        "Detokenize" => v1::DetokenizeRequest { model, ids: vec![1], special: true }.encode_to_vec(),
        "Score" => {
            let input = Some(v1::score_request::Input::Text("Once upon a time".to_owned()));
            v1::ScoreRequest { model, input, first_scored: None }.encode_to_vec()
        }
        "Embed" => {
            let inputs = vec![v1::EmbedInput { input: Some(v1::embed_input::Input::Text("a".to_owned())) }];
            v1::EmbedRequest { model, inputs, ..Default::default() }.encode_to_vec()
        }
        "SetBudget" => {
            let budgets = vec![v1::DeviceBudget { device: "ram".to_owned(), bytes: 1 << 30 }];
            v1::SetBudgetRequest { budgets }.encode_to_vec()
        }
        "Inspect" | "Plan" | "Load" | "Unload" if path.contains("ModelService") => {
            field(1, 2, model.as_bytes())
        }
        _ => Vec::new(),
    }
}

/// Codes that a request with a strange number may come to.
fn is_defined(status: &Status) -> bool {
    use Code::{FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, Unimplemented};
    [FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, Unimplemented].contains(&status.code())
}

#[tokio::test]
async fn cve_2026_21869_every_number_is_refused_by_its_field_or_answered() {
    let before = panics();
    let served = Served::with(|settings| Settings { slots: 2, context: 32, ..settings }).await;
    let (protocol, channel) = (Protocol::read(), served.channel().await);
    let (mut count, mut unclear) = (0, Vec::new());
    for method in &protocol.methods {
        for number in protocol.numbers(method) {
            for (value, bytes, never) in number.values() {
                let held = released(&served).await;
                let message = [sound(&method.path), bytes].concat();
                // A watcher would wait for changes for ever.
                let most = if method.path.ends_with("WatchResidency") { 1 } else { 400 };
                let answer = call(channel.clone(), &method.path, message, most, None).await;
                let what = format!("{} {} = {value}: {answer:?}", method.path, number.name);
                count += 1;
                match &answer {
                    Ok(_) => assert!(!never, "{what}"),
                    Err(status) => {
                        assert!(is_defined(status), "{what}");
                        if status.code() == Code::InvalidArgument {
                            assert_eq!(fields(status).0.len(), 1, "{what}");
                            unclear.extend((!explains(status)).then(|| status.message().to_owned()));
                        }
                        assert_eq!(
                            released(&served).await.devices[0].budget_bytes,
                            held.devices[0].budget_bytes
                        );
                    }
                }
                if method.path.ends_with("SetBudget") {
                    call(channel.clone(), &method.path, sound(&method.path), 1, None).await.unwrap();
                }
            }
        }
        // What one method left is not what the next one begins with.
        emptied(&served).await;
    }
    assert!(unclear.is_empty(), "refusals say what was expected and found: {unclear:#?}");
    assert!(count > 300, "{count}: the protocol has more numbers");
    is_serving(&served).await;
    assert_eq!(panics(), before, "no panics");
    served.end().await;
}

#[tokio::test]
async fn cve_2026_21869_a_refused_number_leaves_no_trace() {
    let served = Served::start().await;
    let (protocol, channel) = (Protocol::read(), served.channel().await);
    let before = Holdings::of(&served).await;
    // Sessions are not yet, nor most jobs, whatever their numbers.
    let is_there = |method: &&Method| !method.path.contains("Job") && !method.path.contains("Session");
    for method in protocol.methods.iter().filter(is_there) {
        for number in protocol.numbers(method).iter().filter(|number| number.is_real()) {
            for (_, bytes, _) in number.values().iter().filter(|(_, _, never)| *never) {
                let message = [sound(&method.path), bytes.clone()].concat();
                let refused = call(channel.clone(), &method.path, message, 1, None).await.unwrap_err();
                assert_eq!(refused.code(), Code::InvalidArgument, "{}: {refused:?}", number.name);
            }
        }
    }
    assert_eq!(Holdings::of(&served).await, before, "not even a model was loaded");
    served.end().await;
}
