//! What other servers of models were attacked by, and this one is immune to: a test for every row of the list of faults
//! that a daemon's requests can touch, named after the row and the first of its ids. Rows that other files hold: 6
//! (`numbers.rs`), 11 and 12 (`tests/tcp_door.rs`, `tests/unix_door.rs`), 19 (`tests/limits.rs`, `connections.rs`); the
//! bombs of rows 16 and 18 themselves in the workspace's `tests/immunity.rs`.

use bantam_daemon::settings::{Bytes, Settings};
use bantam_proto::v1;
use tonic::Code;
use tonic::metadata::MetadataValue;

use super::{Holdings, emptied, is_serving, panics};
use crate::support::served::{Served, asked, fields, generate};

/// Text of a size that attacks: many tokens, long words, no spaces.
fn adversarial() -> [String; 4] {
    ["a".repeat(1 << 20), " ".repeat(1 << 20), "a\u{301}".repeat(300_000), "1!".repeat(1 << 19)]
}

/// Row 5: lengths and ids on the edge of their types.
#[tokio::test]
async fn row_05_cve_2025_49847_lengths_and_ids_on_the_edge() {
    let served = Served::start().await;
    let mut client = served.generation().await;
    for id in [i32::MAX as u32, u32::MAX, 1 << 31, u32::MAX - 1] {
        let ids = vec![1, id];
        let refused = client
            .detokenize(v1::DetokenizeRequest { ids: ids.clone(), ..Default::default() })
            .await
            .unwrap_err();
        assert_eq!(fields(&refused).0, ["ids"], "{refused:?}");
        let input = Some(v1::generate_request::Input::PromptIds(v1::TokenIds { ids }));
        let refused =
            generate(&mut client, v1::GenerateRequest { input, ..asked("", "", 1, 1) }).await.unwrap_err();
        assert_eq!(fields(&refused).0, ["prompt_ids"], "{refused:?}");
    }
    served.end().await;
}

/// Row 8: there are no pointers in the protocol, and a handle is only a name: forged and padded ones are unknown.
#[tokio::test]
async fn row_08_cve_2024_42478_handles_are_names_and_nothing_else() {
    let served = Served::start().await;
    let mut client = served.generation().await;
    let mut models = served.models().await;
    generate(&mut client, asked("qwen3", "a", 1, 1)).await.unwrap();
    for forged in
        ["@18446744073709551615", "@18446744073709551616", "@0x0", "@-0", "@ 0", "@1 ", "@٣", "@1e0", "@"]
    {
        let refused = generate(&mut client, asked(forged, "a", 1, 1)).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{forged}: {refused:?}");
        let refused = models.unload(v1::UnloadRequest { model: forged.to_owned() }).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{forged}: {refused:?}");
    }
    // A handle outlives its model's memory and still means the same model.
    let id = generate(&mut client, asked("qwen3", "a", 1, 1)).await.unwrap().started.model_id;
    models.unload(v1::UnloadRequest { model: id.clone() }).await.unwrap();
    let refused = models.unload(v1::UnloadRequest { model: id.clone() }).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "{refused:?}");
    assert_eq!(generate(&mut client, asked(&id, "a", 1, 1)).await.unwrap().started.model_id, id);
    served.end().await;
}

/// Row 10: names stay in their folders, and what is no model is not opened, whatever it is.
#[tokio::test]
async fn row_10_cve_2024_37032_names_lead_nowhere() {
    let served = Served::start().await;
    let mut client = served.generation().await;
    let private = served.folder.file("private", "secret words");
    let pipe = served.folder.0.join("pipe.gguf");
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, 0o600.into(), 0).unwrap();
    let long = format!("/{}", "a/".repeat(2000));
    let names = [
        "../../../../etc/passwd",
        "qwen3/..",
        "./../qwen3",
        "..",
        ".",
        "./",
        "qwen3/config.json",
        "C:\\models",
        "qwen3\0",
        "\0",
        "/dev/zero",
        "/dev/stdin",
        "/proc/self/mem",
        "/",
        "/etc",
        "file:///etc/passwd",
        "\u{2025}/qwen3",
        "．．/qwen3",
        "~",
        "$HOME",
        "qwen3;ls",
        &long,
        private.to_str().unwrap(),
        pipe.to_str().unwrap(),
        served.folder.socket().to_str().unwrap(),
    ]
    .map(str::to_owned);
    let before = Holdings::of(&served).await;
    for name in &names {
        let refused = generate(&mut client, asked(name, "a", 1, 1)).await.unwrap_err();
        let is_refusal =
            [Code::NotFound, Code::InvalidArgument, Code::FailedPrecondition].contains(&refused.code());
        assert!(is_refusal, "{name:?}: {refused:?}");
        assert!(!refused.message().contains("secret words"), "{refused:?}");
    }
    assert_eq!(Holdings::of(&served).await, before, "what is no model is not remembered as one");
    served.end().await;
}

/// A model has one name, however a client spells it.
#[tokio::test]
async fn row_10_cve_2024_37032_a_client_does_not_name_models() {
    let served = Served::start().await;
    let mut client = served.generation().await;
    let mut ids = Vec::new();
    for spelled in ["./qwen3", "qwen3/", "qwen3//", "./././qwen3/.", "qwen3"] {
        ids.push(generate(&mut client, asked(spelled, "a", 1, 1)).await.unwrap().started.model_id);
    }
    assert!(ids.iter().all(|id| *id == ids[0]), "{ids:?}");
    let listed =
        served.models().await.list(v1::ModelServiceListRequest::default()).await.unwrap().into_inner();
    let model = listed.models.iter().find(|model| model.id == ids[0]).unwrap();
    assert_eq!(model.name, "qwen3");
    served.end().await;
}

/// Row 11: a page in a browser that made its own name point here is refused for its headers; so is another user, by
/// `another_user_is_told_that_it_may_not`.
#[tokio::test]
async fn row_11_cve_2024_28224_web_pages_are_refused_at_the_open_door() {
    let served = Served::with(|settings| Settings {
        tcp_listen: vec![([127, 0, 0, 1], 0).into()],
        tcp_open_loopback: true,
        ..settings
    })
    .await;
    let target = format!("http://127.0.0.1:{}", served.addresses[0].port());
    let endpoint = tonic::transport::Endpoint::from_shared(target).unwrap();
    let own = endpoint.connect().await.unwrap();
    let rebound = endpoint.clone().origin("http://evil.example".parse().unwrap()).connect().await.unwrap();
    let mut client = v1::generation_service_client::GenerationServiceClient::new(rebound);
    let refused = client.generate(asked("", "a", 1, 1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    let mut client = v1::generation_service_client::GenerationServiceClient::new(own);
    let mut page = tonic::Request::new(asked("", "a", 1, 1));
    page.metadata_mut().insert("origin", MetadataValue::from_static("http://localhost"));
    let refused = client.generate(page).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    // Files are for the socket's owner.
    let path = crate::support::served::goldens().join("qwen3").display().to_string();
    let refused = client.generate(asked(&path, "a", 1, 1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied, "{refused:?}");
    // Nor does a watcher hear of a model that somebody else named by its path.
    let own = endpoint.connect().await.unwrap();
    let mut watching = v1::model_service_client::ModelServiceClient::new(own)
        .watch_residency(v1::WatchResidencyRequest::default())
        .await
        .unwrap()
        .into_inner();
    watching.message().await.unwrap().unwrap();
    let copy = served.folder.0.join("copy");
    copy_folder(&crate::support::served::goldens().join("qwen3"), &copy);
    let mut owner = served.generation().await;
    let id = generate(&mut owner, asked(copy.to_str().unwrap(), "a", 1, 1)).await.unwrap().started.model_id;
    assert_eq!(generate(&mut client, asked("", "a", 1, 1)).await.unwrap().tokens.len(), 1);
    loop {
        let change = watching.message().await.unwrap().unwrap();
        assert!(!format!("{change:?}").contains(&format!("{id:?}")), "{change:?}");
        if let Some(v1::watch_residency_response::Event::Loaded(_)) = change.event {
            break;
        }
    }
    served.end().await;
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().flatten().filter(|entry| entry.path().is_file()) {
        std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

/// Row 12: what a client sent as its secret is in no answer.
#[tokio::test]
async fn row_12_cve_2025_59425_a_wrong_token_is_not_repeated() {
    let tokens = crate::support::Folder::new();
    let served = Served::with(|settings| Settings {
        tcp_listen: vec![([127, 0, 0, 1], 0).into()],
        tcp_tokens: tokens.file("tokens", "ann: 0123456789abcdef\n"),
        ..settings
    })
    .await;
    let target = format!("http://127.0.0.1:{}", served.addresses[0].port());
    let channel = tonic::transport::Endpoint::from_shared(target).unwrap().connect().await.unwrap();
    let mut client = v1::generation_service_client::GenerationServiceClient::new(channel);
    for token in [
        "Bearer 0123456789abcdeX",
        "Bearer 0123456789abcde",
        "Bearer 0123456789abcdef0",
        "Bearer ",
        "0123456789abcdef",
    ] {
        let mut request = tonic::Request::new(asked("", "a", 1, 1));
        request.metadata_mut().insert("authorization", token.parse().unwrap());
        let refused = client.generate(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unauthenticated, "{refused:?}");
        assert!(!format!("{refused:?}").contains("0123456789"), "{refused:?}");
    }
    served.end().await;
}

/// Rows 13 and 14: a folder of pickled weights, or with code of its own, is refused; nothing of it runs.
#[tokio::test]
async fn row_13_cve_2025_32434_pickles_and_code_are_not_read() {
    let served = Served::start().await;
    let folder = served.folder.0.join("pickled");
    std::fs::create_dir(&folder).unwrap();
    let golden = crate::support::served::goldens().join("qwen3");
    let config = std::fs::read_to_string(golden.join("config.json")).unwrap();
    let config = config.replacen('{', "{\"auto_map\": {\"AutoModel\": \"evil.Model\"},", 1);
    std::fs::write(folder.join("config.json"), config).unwrap();
    let ran = served.folder.0.join("ran");
    let pickle = format!("cos\nsystem\n(S'touch {}'\ntR.", ran.display());
    for name in ["pytorch_model.bin", "model.pt", "model.ckpt"] {
        std::fs::write(folder.join(name), &pickle).unwrap();
    }
    std::fs::write(folder.join("evil.py"), format!("open({:?}, 'w')", ran.display().to_string())).unwrap();
    let mut client = served.generation().await;
    let model = folder.display().to_string();
    let refused = generate(&mut client, asked(&model, "a", 1, 1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    // A pickle by the name of weights that are read is no better.
    std::fs::write(folder.join("model.safetensors"), &pickle).unwrap();
    let refused = generate(&mut client, asked(&model, "a", 1, 1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused:?}");
    assert!(!ran.exists());
    emptied(&served).await;
    served.end().await;
}

/// Row 15: no request has a place for tensors; what comes nearest are ids, which are checked.
#[tokio::test]
async fn row_15_cve_2025_62164_requests_bring_no_tensors() {
    use prost::Message;
    let files = prost_types::FileDescriptorSet::decode(bantam_proto::DESCRIPTORS).unwrap().file;
    let ours = files.iter().filter(|file| file.package() == "bantam.v1");
    let messages = ours.flat_map(|file| &file.message_type);
    let requests = messages.filter(|message| message.name().ends_with("Request"));
    let mut count = 0;
    for field in requests.flat_map(|message| &message.field) {
        count += 1;
        let kind = field.r#type();
        let is_list = field.label() == prost_types::field_descriptor_proto::Label::Repeated;
        use prost_types::field_descriptor_proto::Type::{Bytes, Double, Float};
        assert!(kind != Bytes && !(is_list && [Double, Float].contains(&kind)), "{}", field.name());
    }
    assert!(count > 20);
}

/// Row 16: a client sends no template; what it sends to one is data.
#[tokio::test]
async fn row_16_cve_2024_34359_texts_are_data_to_a_template() {
    let before = panics();
    let served = Served::start().await;
    let mut client = served.generation().await;
    for attack in [
        "{{ 7*7 }}",
        "{% for i in range(99999999) %}x{% endfor %}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{% include '/etc/passwd' %}",
        "{{ raise_exception('x') }}",
    ] {
        let message = v1::ChatMessage {
            role: "user".to_owned(),
            content: Some(attack.to_owned()),
            ..Default::default()
        };
        let conversation = v1::Conversation { messages: vec![message.clone()], ..Default::default() };
        let input = Some(v1::tokenize_request::Input::Conversation(conversation));
        let found =
            client.tokenize(v1::TokenizeRequest { input, ..Default::default() }).await.unwrap().into_inner();
        assert!(found.rendered.unwrap().contains(attack), "as it was written");
        // Nor do arguments become code, or take the place of what the template was given.
        let arguments =
            [("chat_template", attack), ("messages", "x"), ("raise_exception", "x"), ("tools", attack)];
        let template_arguments =
            arguments.map(|(name, value)| (name.to_owned(), format!("{value:?}"))).into_iter().collect();
        let conversation =
            v1::Conversation { messages: vec![message], template_arguments, ..Default::default() };
        let input = Some(v1::tokenize_request::Input::Conversation(conversation));
        match client.tokenize(v1::TokenizeRequest { input, ..Default::default() }).await {
            Ok(found) => {
                assert!(!found.into_inner().rendered.unwrap().contains("49"), "nothing was computed")
            }
            Err(refused) => assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}"),
        }
    }
    // As much as a request may bring: rendered, or refused by its field; never for long.
    let message = |number: usize| v1::ChatMessage {
        role: ["user", "assistant"][number % 2].to_owned(),
        content: Some("x".repeat(900)),
        ..Default::default()
    };
    let messages: Vec<_> = (0..4096).map(message).collect();
    let refused = client.chat(v1::ChatRequest { messages, ..Default::default() }).await.unwrap_err();
    assert_eq!(fields(&refused).0, ["messages"], "{refused:?}");
    is_serving(&served).await;
    assert_eq!(panics(), before);
    served.end().await;
}

/// Row 17: grammars and schemas have their place and do nothing: a bomb in one is not even read.
#[tokio::test]
async fn row_17_cve_2025_48944_grammars_are_not_yet() {
    use v1::structured_output::Form;
    let served = Served::start().await;
    let before = Holdings::of(&served).await;
    let mut client = served.generation().await;
    for form in [
        Form::Grammar(format!("root ::= {}\"a\"{}", "(".repeat(60_000), ")".repeat(60_000))),
        Form::Grammar("root ::= root \"a\" | (\"a\"*)*".to_owned()),
        Form::Regex("(a{0,2147483647}){0,2147483647}".to_owned()),
        Form::JsonSchema("{\"$ref\": \"#\"}".to_owned()),
        Form::JsonSchema("[".repeat(1 << 20)),
        Form::Json(true),
        Form::Choices(v1::Choices { texts: vec![String::new(); 10_000] }),
    ] {
        let mut request = asked("", "a", 1, 1);
        request.options.as_mut().unwrap().structured_output = Some(v1::StructuredOutput { form: Some(form) });
        let refused = generate(&mut client, request).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented, "{refused:?}");
        assert!(refused.message().contains("not yet"), "{refused:?}");
    }
    assert_eq!(Holdings::of(&served).await, before, "nothing was loaded for them");
    served.end().await;
}

/// Row 18: texts that make tokenizers slow end within the bounds of texts, and others are answered meanwhile.
#[tokio::test]
async fn row_18_cve_2025_1194_texts_that_make_tokenizers_slow() {
    let served = Served::start().await;
    let mut slow = Vec::new();
    for text in adversarial() {
        let mut client = served.generation().await;
        slow.push(tokio::spawn(async move {
            let input = Some(v1::tokenize_request::Input::Text(text.clone()));
            let request = v1::TokenizeRequest { model: "qwen3".to_owned(), input, ..Default::default() };
            let found = client.tokenize(request).await.unwrap().into_inner();
            assert!(!found.ids.is_empty());
            // Far beyond the context: refused once it was counted.
            let refused = client.generate(asked("qwen3", &text, 1, 1)).await.unwrap_err();
            assert_eq!(fields(&refused).0, ["prompt"], "{refused:?}");
        }));
    }
    is_serving(&served).await;
    for one in slow {
        tokio::time::timeout(crate::support::LONG, one).await.expect("it ends").unwrap();
    }
    emptied(&served).await;
    served.end().await;
}

/// Row 19: what a message becomes when it is unpacked is not bounded by its length, so packed ones are refused.
#[tokio::test]
async fn row_19_cve_2024_12886_packed_messages_are_refused() {
    let served = Served::with(|settings| Settings { message_bytes: Bytes(64 << 10), ..settings }).await;
    let channel = served.channel().await;
    for name in ["gzip", "deflate", "zstd", "bomb"] {
        let mut client = v1::generation_service_client::GenerationServiceClient::new(channel.clone());
        let mut request = tonic::Request::new(asked("", "a", 1, 1));
        request.metadata_mut().insert("grpc-encoding", name.parse().unwrap());
        let refused = client.generate(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::Unimplemented, "{refused:?}");
    }
    let mut client = v1::generation_service_client::GenerationServiceClient::new(channel);
    let refused = client.generate(asked("", &"a".repeat(65 << 10), 1, 1)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    // Many headers, each of them small.
    let mut request = tonic::Request::new(asked("", "a", 1, 1));
    for number in 0..400 {
        let name: tonic::metadata::MetadataKey<_> = format!("x-{number}").parse().unwrap();
        request.metadata_mut().insert::<tonic::metadata::MetadataKey<tonic::metadata::Ascii>>(
            name,
            "v".repeat(30).parse().unwrap(),
        );
    }
    let answer = match client.generate(request).await {
        Ok(stream) => stream.into_inner().message().await.map(drop),
        Err(refused) => Err(refused),
    };
    assert!(answer.is_err());
    is_serving(&served).await;
    assert_eq!(generate(&mut client, asked("", "a", 1, 1)).await.unwrap().tokens.len(), 1);
    served.end().await;
}
