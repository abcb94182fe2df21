//! What the .proto files may say, held without buf: the rules of its standard set that clients would notice, a
//! comment on everything, and that nothing breaks which was released. Each rule is tried on a planted fault as well.
#![allow(clippy::unwrap_used, reason = "a descriptor set that cannot be read is a failure as it is")]

use std::collections::{BTreeMap, BTreeSet};

use bantam_proto::DESCRIPTORS;
use prost::Message;
use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
};

/// The messages that clients may have been built with: what stands here is there for good.
const RELEASED: &[u8] = include_bytes!("../released.bin");
const PACKAGE: &str = "bantam.v1";

/// Our own files of a set.
fn files(set: &[u8]) -> Vec<FileDescriptorProto> {
    let set = FileDescriptorSet::decode(set).unwrap();
    set.file.into_iter().filter(|file| !file.package().starts_with("google.")).collect()
}

/// A thing that has a name: its full name, its place in the comments' numbering, and the thing.
struct Named<T> {
    name: String,
    path: Vec<i32>,
    is: T,
}

fn named<'a, T>(
    parent: &str,
    path: &[i32],
    tag: i32,
    things: &'a [T],
    name: fn(&T) -> &str,
) -> Vec<Named<&'a T>> {
    let each = (0..).zip(things);
    each.map(|(index, is)| Named {
        name: format!("{parent}.{}", name(is)),
        path: [path, &[tag, index]].concat(),
        is,
    })
    .collect()
}

/// All messages, those inside of others too. The entries of maps are not written by anybody.
fn messages(file: &FileDescriptorProto) -> Vec<Named<&DescriptorProto>> {
    let mut all = named(file.package(), &[], 4, &file.message_type, |message| message.name());
    let mut next = 0;
    while next < all.len() {
        let inner =
            named(&all[next].name, &all[next].path, 3, &all[next].is.nested_type, |message| message.name());
        all.extend(inner);
        next += 1;
    }
    all.retain(|message| !message.is.options.as_ref().is_some_and(|options| options.map_entry()));
    all
}

fn enums(file: &FileDescriptorProto) -> Vec<Named<&EnumDescriptorProto>> {
    let mut all = named(file.package(), &[], 5, &file.enum_type, |found| found.name());
    for message in messages(file) {
        all.extend(named(&message.name, &message.path, 4, &message.is.enum_type, |found| found.name()));
    }
    all
}

fn services(file: &FileDescriptorProto) -> Vec<Named<&ServiceDescriptorProto>> {
    named(file.package(), &[], 6, &file.service, |service| service.name())
}

/// `optional` makes a oneof of its own, which nobody wrote.
fn is_written(message: &DescriptorProto, oneof: usize) -> bool {
    let mut members = message.field.iter().filter(|field| field.oneof_index == Some(oneof as i32));
    members.any(|field| !field.proto3_optional())
}

fn is_pascal(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_uppercase()) && name.chars().all(|c| c.is_ascii_alphanumeric())
}

/// Words of one case with single underscores between them, none at an end.
fn is_snake(name: &str, is_letter: fn(&char) -> bool) -> bool {
    name.split('_').all(|word| !word.is_empty() && word.chars().all(|c| is_letter(&c) || c.is_ascii_digit()))
        && name.starts_with(|c: char| is_letter(&c))
}

fn last(name: &str) -> &str {
    name.rsplit('.').next().unwrap()
}

fn names(files: &[FileDescriptorProto]) -> Vec<String> {
    let lower = |name: &str| is_snake(name, char::is_ascii_lowercase);
    let mut wrong = Vec::new();
    let mut expect = |holds: bool, what: &str, rule: &str| {
        if !holds {
            wrong.push(format!("{what}: {rule}"));
        }
    };
    for file in files {
        let stem = file.name().strip_prefix("bantam/v1/").and_then(|name| name.strip_suffix(".proto"));
        expect(stem.is_some_and(lower), file.name(), "expected bantam/v1/lower_snake.proto");
        expect(file.package() == PACKAGE, file.name(), "expected the package bantam.v1");
        expect(file.syntax() == "proto3", file.name(), "expected syntax proto3");
        for message in messages(file) {
            expect(is_pascal(message.is.name()), &message.name, "expected PascalCase");
            for field in &message.is.field {
                let name = format!("{}.{}", message.name, field.name());
                expect(lower(field.name()), &name, "expected lower_snake");
                let counts_bytes = field.name().split('_').any(|word| word == "bytes");
                let is_number = !matches!(field.r#type(), Type::Message | Type::Bytes);
                let is_wide = field.r#type() == Type::Uint64;
                expect(!counts_bytes || !is_number || is_wide, &name, "expected uint64 for bytes");
            }
            for oneof in &message.is.oneof_decl {
                let name = oneof.name();
                expect(
                    lower(name.trim_start_matches('_')),
                    &format!("{}.{name}", message.name),
                    "lower_snake",
                );
            }
        }
        for found in enums(file) {
            let prefix = upper_snake(found.is.name());
            expect(is_pascal(found.is.name()), &found.name, "expected PascalCase");
            for value in &found.is.value {
                let name = format!("{}.{}", found.name, value.name());
                let rest = value.name().strip_prefix(&prefix).and_then(|rest| rest.strip_prefix('_'));
                let is_upper = rest.is_some_and(|rest| is_snake(rest, char::is_ascii_uppercase));
                expect(is_upper, &name, &format!("expected {prefix}_UPPER_SNAKE"));
                expect(
                    (value.number() == 0) == (rest == Some("UNSPECIFIED")),
                    &name,
                    "expected UNSPECIFIED as 0, and as nothing else",
                );
            }
            expect(
                found.is.value.first().is_some_and(|value| value.number() == 0),
                &found.name,
                "expected 0 first",
            );
        }
    }
    wrong
}

/// `KvType` as `KV_TYPE`.
fn upper_snake(pascal: &str) -> String {
    let mut name = String::new();
    for c in pascal.chars() {
        if c.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(c.to_ascii_uppercase());
    }
    name
}

/// Every call has messages of its own, named after it: one can then grow without the others.
fn calls(files: &[FileDescriptorProto]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut users: BTreeMap<String, String> = BTreeMap::new();
    for service in files.iter().flat_map(services) {
        if !service.is.name().ends_with("Service") || !is_pascal(service.is.name()) {
            wrong.push(format!("{}: expected a name such as ThingService", service.name));
        }
        for method in &service.is.method {
            let call = format!("{}.{}", service.name, method.name());
            if !is_pascal(method.name()) {
                wrong.push(format!("{call}: expected PascalCase"));
            }
            for (found, end) in [(method.input_type(), "Request"), (method.output_type(), "Response")] {
                let short = format!("{}{end}", method.name());
                if last(found) != short && last(found) != format!("{}{short}", service.is.name()) {
                    wrong.push(format!("{call}: expected {short}, found {found}"));
                }
                if let Some(other) = users.insert(found.to_owned(), call.clone()) {
                    wrong.push(format!("{call}: {found} belongs to {other} already"));
                }
            }
        }
    }
    wrong
}

fn uncommented(files: &[FileDescriptorProto]) -> Vec<String> {
    let mut wrong = Vec::new();
    for file in files {
        let info = file.source_code_info.as_ref().unwrap();
        let comments = info.location.iter().filter(|place| !place.leading_comments().trim().is_empty());
        let comments: BTreeSet<&[i32]> = comments.map(|place| place.path.as_slice()).collect();
        let mut expect = |path: &[i32], name: String| {
            if !comments.contains(path) {
                wrong.push(format!("{name}: expected a comment above it, found none"));
            }
        };
        for message in messages(file) {
            expect(&message.path, message.name.clone());
            for field in named(&message.name, &message.path, 2, &message.is.field, |field| field.name()) {
                expect(&field.path, field.name);
            }
            let oneofs = named(&message.name, &message.path, 8, &message.is.oneof_decl, |oneof| oneof.name());
            for (_, oneof) in oneofs.into_iter().enumerate().filter(|(at, _)| is_written(message.is, *at)) {
                expect(&oneof.path, oneof.name);
            }
        }
        for found in enums(file) {
            expect(&found.path, found.name.clone());
            for value in named(&found.name, &found.path, 2, &found.is.value, |value| value.name()) {
                expect(&value.path, value.name);
            }
        }
        for service in services(file) {
            expect(&service.path, service.name.clone());
            for method in named(&service.name, &service.path, 2, &service.is.method, |method| method.name()) {
                expect(&method.path, method.name);
            }
        }
    }
    wrong
}

/// All that a client can rely on, a line each.
fn promises(files: &[FileDescriptorProto]) -> BTreeSet<String> {
    let mut all = BTreeSet::new();
    for file in files {
        for Named { name, is, .. } in messages(file) {
            all.insert(format!("message {name} in {}", file.name()));
            all.extend(is.field.iter().map(|field| format!("{name}: {}", field_promise(is, field))));
        }
        for Named { name, is, .. } in enums(file) {
            all.insert(format!("enum {name} in {}", file.name()));
            all.extend(is.value.iter().map(|value| format!("{name}: {} = {}", value.name(), value.number())));
        }
        for Named { name, is, .. } in services(file) {
            all.insert(format!("service {name} in {}", file.name()));
            all.extend(is.method.iter().map(|method| {
                let stream = |is_stream| if is_stream { "stream " } else { "" };
                let (asks, answers) = (stream(method.client_streaming()), stream(method.server_streaming()));
                let (input, output) = (method.input_type(), method.output_type());
                format!("{name}: {}({asks}{input}) returns ({answers}{output})", method.name())
            }));
        }
    }
    all
}

fn field_promise(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let oneof = match field.oneof_index {
        Some(at) if !field.proto3_optional() => message.oneof_decl[at as usize].name(),
        _ => "",
    };
    let label = match (field.label(), field.proto3_optional()) {
        (Label::Repeated, _) => "repeated ",
        (_, true) => "optional ",
        _ => "",
    };
    // What a map holds stands in its entry.
    let entry = message.nested_type.iter().find(|inner| {
        inner.options.as_ref().is_some_and(|options| options.map_entry())
            && last(field.type_name()) == inner.name()
    });
    let entry =
        entry.map(|entry| entry.field.iter().map(|field| field_promise(entry, field)).collect::<Vec<_>>());
    let (kind, type_name) = (field.r#type().as_str_name(), field.type_name());
    let (name, number) = (field.name(), field.number());
    format!("{label}{kind} {type_name} {name} = {number} {oneof} {}", entry.unwrap_or_default().join(", "))
}

fn broken(released: &[FileDescriptorProto], now: &[FileDescriptorProto]) -> Vec<String> {
    promises(released).difference(&promises(now)).cloned().collect()
}

#[track_caller]
fn report(wrong: &[String]) {
    assert!(wrong.is_empty(), "{} found:\n{}\n", wrong.len(), wrong.join("\n"));
}

#[test]
fn names_are_those_that_every_language_expects() {
    report(&names(&files(DESCRIPTORS)));
}

#[test]
fn every_call_has_messages_of_its_own() {
    report(&calls(&files(DESCRIPTORS)));
}

#[test]
fn everything_is_described() {
    report(&uncommented(&files(DESCRIPTORS)));
}

#[test]
fn nothing_breaks_that_was_released() {
    let broken = broken(&files(RELEASED), &files(DESCRIPTORS));
    assert!(
        broken.is_empty(),
        "clients rely on these, which are gone or changed: add beside them instead, or, where nobody can have used \
         them yet, run `cargo xtask proto --release`:\n{}\n",
        broken.join("\n")
    );
}

#[test]
fn the_services_are_those_that_were_planned() {
    let files = files(DESCRIPTORS);
    let calls = |name: &str| {
        let service = files.iter().flat_map(|file| &file.service).find(|service| service.name() == name);
        let calls = service.unwrap().method.iter().map(|method| method.name().to_owned());
        calls.collect::<Vec<_>>().join(" ")
    };
    assert_eq!(calls("ModelService"), "List Inspect Plan Load Unload SetBudget WatchResidency");
    assert_eq!(calls("GenerationService"), "Generate Chat Session Tokenize Detokenize Score Embed");
    assert_eq!(calls("JobService"), "Quantize Merge Train Evaluate Watch Cancel List");
}

#[test]
fn a_usual_token_is_a_small_message() {
    use bantam_proto::v1::{GenerateResponse, Token, generate_response::Event};
    let token = Token { id: 12_345, text: " token".to_owned(), ..Token::default() };
    let message = GenerateResponse { event: Some(Event::Token(token)) };
    assert!(message.encoded_len() <= 13, "{} bytes", message.encoded_len());
}

/// The file of the set that holds a message of this name, and the message.
fn message<'a>(files: &'a mut [FileDescriptorProto], name: &str) -> &'a mut DescriptorProto {
    files.iter_mut().flat_map(|file| &mut file.message_type).find(|message| message.name() == name).unwrap()
}

fn service<'a>(files: &'a mut [FileDescriptorProto], name: &str) -> &'a mut ServiceDescriptorProto {
    files.iter_mut().flat_map(|file| &mut file.service).find(|service| service.name() == name).unwrap()
}

fn an_enum<'a>(files: &'a mut [FileDescriptorProto], name: &str) -> &'a mut EnumDescriptorProto {
    files.iter_mut().flat_map(|file| &mut file.enum_type).find(|found| found.name() == name).unwrap()
}

type Plant = fn(&mut [FileDescriptorProto]);

#[track_caller]
fn check(rule: fn(&[FileDescriptorProto]) -> Vec<String>, plants: &[Plant]) {
    for (number, plant) in plants.iter().enumerate() {
        let mut files = files(DESCRIPTORS);
        plant(&mut files);
        assert!(!rule(&files).is_empty(), "plant {number} was not noticed");
    }
}

#[test]
fn planted_names_are_noticed() {
    check(
        names,
        &[
            |files| files[0].package = Some("bantam".to_owned()),
            |files| files[0].name = Some("bantam/Model.proto".to_owned()),
            |files| message(files, "Token").name = Some("token".to_owned()),
            |files| message(files, "Token").field[1].name = Some("theText".to_owned()),
            |files| message(files, "PlanLine").field[5].set_type(Type::Uint32),
            |files| an_enum(files, "KvType").value[0].name = Some("KV_TYPE_DEFAULT".to_owned()),
            |files| an_enum(files, "KvType").value[1].name = Some("F32".to_owned()),
            |files| an_enum(files, "KvType").value.rotate_left(1),
        ],
    );
}

#[test]
fn planted_calls_are_noticed() {
    check(
        calls,
        &[
            |files| service(files, "JobService").name = Some("Jobs".to_owned()),
            |files| service(files, "JobService").method[0].input_type = Some(".bantam.v1.Job".to_owned()),
            |files| {
                let methods = &mut service(files, "JobService").method;
                let again = methods[0].clone();
                methods.push(again);
            },
        ],
    );
}

#[test]
fn a_missing_comment_is_noticed() {
    let places = |files: &[FileDescriptorProto]| -> usize {
        let infos = files.iter().filter_map(|file| file.source_code_info.as_ref());
        infos.map(|info| info.location.iter().filter(|place| place.path.len() > 1).count()).sum()
    };
    let mut files = files(DESCRIPTORS);
    let all = places(&files);
    for file in &mut files {
        let info = file.source_code_info.as_mut().unwrap();
        info.location.retain(|place| place.path.len() <= 1);
    }
    assert_eq!(uncommented(&files).len(), all);
}

#[test]
fn planted_breaks_are_noticed() {
    let changed = |files: &[FileDescriptorProto]| broken(&self::files(DESCRIPTORS), files);
    let rule: fn(&[FileDescriptorProto]) -> Vec<String> = changed;
    check(
        rule,
        &[
            |files| drop(message(files, "Token").field.pop()),
            |files| message(files, "Token").field[0].number = Some(99),
            |files| message(files, "Token").field[0].set_type(Type::Uint64),
            |files| message(files, "Token").field[0].set_label(Label::Repeated),
            |files| message(files, "Token").field[0].name = Some("token_id".to_owned()),
            |files| message(files, "GenerateRequest").field[1].oneof_index = None,
            |files| message(files, "GenerateRequest").field[3].proto3_optional = None,
            |files| message(files, "Conversation").nested_type[0].field[1].set_type(Type::Bytes),
            |files| message(files, "Token").name = Some("Word".to_owned()),
            |files| drop(an_enum(files, "KvType").value.pop()),
            |files| drop(service(files, "JobService").method.pop()),
            |files| service(files, "GenerationService").method[0].server_streaming = None,
            |files| service(files, "JobService").name = Some("WorkService".to_owned()),
        ],
    );
    let mut grown = files(DESCRIPTORS);
    let field = message(&mut grown, "Token").field[0].clone();
    message(&mut grown, "Token").field.push(FieldDescriptorProto {
        number: Some(100),
        name: Some("more".to_owned()),
        ..field
    });
    report(&broken(&files(DESCRIPTORS), &grown));
}
