//! An adapter for a request alone: its tokens are the library's with that adapter, whoever asks for another meanwhile.

use std::fs;
use std::path::{Path, PathBuf};

use bantam_core::{Cpu, KvKind, Precision};
use bantam_daemon::settings::{Bytes, Settings};
use bantam_model::generate::Generation;
use bantam_model::generation::{EosSources, GenerationFlags};
use bantam_model::plan::Options;
use bantam_model::source::Source;
use bantam_proto::v1;
use tonic::Code;

use super::{Served, generate, goldens};

fn adapters() -> PathBuf {
    goldens().join("..").canonicalize().unwrap()
}

/// Room for some bytes, with the goldens' adapters by their names.
fn with_room(bytes: u64) -> impl FnOnce(Settings) -> Settings {
    move |settings| {
        let mut model_folders = settings.model_folders;
        model_folders.extend(["lora", "lora-made"].map(|group| adapters().join(group)));
        Settings { adapter_bytes: Bytes(bytes), model_folders, ..settings }
    }
}

/// Greedy tokens of the library.
fn alone(model: &str, adapter: Option<&Path>, ids: &[u32], count: usize) -> Vec<u32> {
    let source = Source::open(&goldens().join(model)).unwrap();
    let source = match adapter {
        Some(folder) => source.adapted(folder).unwrap(),
        None => source,
    };
    let options = Options {
        context: 256,
        chunk: 64,
        kv: KvKind::F32,
        precision: Precision::Exact,
        ..Options::SMALLEST
    };
    let mut engine = source.load(options, Cpu::detect(), 1, None, &mut |_| {}).unwrap();
    let flags = GenerationFlags {
        max_new_tokens: Some(count),
        temperature: Some(0.0),
        ignore_eos: true,
        ..GenerationFlags::default()
    };
    let eos = EosSources { config: &source.spec.eos, tokenizer: None };
    let settings = source.generation_defaults().unwrap().settings(&flags, eos).unwrap();
    let mut generation = Generation::begin(&mut engine, None, settings, ids).unwrap();
    let mut found = Vec::new();
    while let Some(token) = generation.next(&mut engine).unwrap() {
        found.push(token.id);
    }
    found
}

fn request(model: &str, adapter: &str, ids: &[u32], count: u32) -> v1::GenerateRequest {
    v1::GenerateRequest {
        model: model.to_owned(),
        input: Some(v1::generate_request::Input::PromptIds(v1::TokenIds { ids: ids.to_vec() })),
        max_new_tokens: Some(count),
        options: Some(v1::GenerationOptions {
            temperature: Some(0.0),
            ignore_eos: true,
            adapter: adapter.to_owned(),
            ..v1::GenerationOptions::default()
        }),
    }
}

async fn beside(served: &Served, model: &str) -> Vec<v1::ModelAdapter> {
    let list = served.models().await.list(v1::ModelServiceListRequest::default()).await;
    let models = list.unwrap().into_inner().models;
    models.into_iter().find(|found| found.name == model).unwrap().adapters
}

#[tokio::test]
async fn requests_with_adapters_and_without_get_the_librarys_tokens() {
    let served = Served::with(with_room(8 << 20)).await;
    for (model, names) in [
        ("llama-tied", ["lora-llama", "lora-dora-llama"]),
        ("gpt_oss-bf16", ["experts-gpt_oss", "lora-gpt_oss"]),
        ("mixtral", ["experts-mixtral", "some-mixtral"]),
    ] {
        let folder = |name: &str| {
            let group = if name.starts_with("lora") { "lora" } else { "lora-made" };
            adapters().join(group).join(name)
        };
        let prompts: [&[u32]; 3] = [&[5, 9, 2, 7, 1, 3], &[8, 4, 6], &[1, 2, 3, 4, 5, 6, 7, 8, 9]];
        let sets = ["", names[0], names[1]];
        let wanted = [0, 1, 2].map(|i| {
            let folder = folder(sets[i]);
            alone(model, (i > 0).then_some(folder.as_path()), prompts[i], 20)
        });
        // Twice, so that the second time all are there; and all at once.
        for _ in 0..2 {
            let mut replies = Vec::new();
            for i in [0, 1, 2] {
                let mut client = served.generation().await;
                let asked = request(model, sets[i], prompts[i], 20);
                replies.push(tokio::spawn(async move { generate(&mut client, asked).await.unwrap().ids() }));
            }
            for (reply, (set, wanted)) in replies.into_iter().zip(sets.iter().zip(&wanted)) {
                assert_eq!(reply.await.unwrap(), *wanted, "{model} with {set:?}");
            }
        }
        assert_ne!(
            alone(model, None, prompts[1], 20),
            wanted[1],
            "{model}: the adapter changes nothing that could be seen"
        );
        let there = beside(&served, model).await;
        let mut found: Vec<&str> = there.iter().map(|adapter| adapter.name.as_str()).collect();
        found.sort_unstable();
        let mut names = names;
        names.sort_unstable();
        assert_eq!(found, names);
        assert!(there.iter().all(|adapter| adapter.references == 0 && adapter.bytes > 0));
        // By its path it is the same folder.
        let path = folder(sets[1]).display().to_string();
        let again = generate(&mut served.generation().await, request(model, &path, prompts[1], 20)).await;
        assert_eq!(again.unwrap().ids(), wanted[1]);
        assert_eq!(beside(&served, model).await.len(), 2, "and stands there once");
    }
    served.end().await;
}

/// What was read with one adapter is met by requests with that adapter, in the folder as it is now, and by no others.
#[tokio::test]
async fn what_an_adapter_has_read_is_met_by_its_own_requests_alone() {
    let served = Served::with(with_room(8 << 20)).await;
    let mut client = served.generation().await;
    let folder = served.folder.0.join("mine");
    fs::create_dir_all(&folder).unwrap();
    let put = |from: &Path| {
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            let _ = fs::remove_file(folder.join(file));
            fs::copy(from.join(file), folder.join(file)).unwrap();
        }
    };
    let [one, other] = ["lora-llama", "lora-rslora-llama"].map(|name| adapters().join("lora").join(name));
    let mine = folder.display().to_string();
    let mut ids: Vec<u32> = (0..90).map(|i| (i * 37 + 11) % 200).collect();
    put(&one);
    for (adapter, from, known) in [
        ("", None, 0),
        (mine.as_str(), Some(&one), 0),
        ("lora-dora-llama", Some(&adapters().join("lora/lora-dora-llama")), 0),
        // Each goes on where it was, and another adapter in the same folder is another.
        ("", None, 89),
        (mine.as_str(), Some(&one), 89),
        (mine.as_str(), Some(&other), 0),
        (mine.as_str(), Some(&other), 89),
    ] {
        if from.is_some_and(|from| *from == other) && known == 0 {
            put(&other);
        }
        let reply = generate(&mut client, request("llama-tied", adapter, &ids, 9)).await.unwrap();
        assert_eq!(reply.ids(), alone("llama-tied", from.map(PathBuf::as_path), &ids, 9), "{adapter:?}");
        assert_eq!(reply.started.cached_tokens, known, "{adapter:?}");
    }
    // A reply's own tokens are read as well, and the adapter may have left between two turns.
    let reply = generate(&mut client, request("llama-tied", "", &ids, 9)).await.unwrap();
    ids.extend(reply.ids());
    ids.extend([7, 7, 7]);
    let reply = generate(&mut client, request("llama-tied", "", &ids, 9)).await.unwrap();
    assert_eq!((reply.started.cached_tokens, reply.ids()), (98, alone("llama-tied", None, &ids, 9)));
    served.end().await;
}

/// Where there is room for one, one waits for the other; and whoever is not in use leaves.
#[tokio::test]
async fn adapters_that_do_not_fit_together_wait_for_one_another() {
    let served = Served::with(with_room(700 << 10)).await;
    let names = ["lora-llama", "lora-dora-llama"];
    let wanted =
        names.map(|name| alone("llama-tied", Some(&adapters().join("lora").join(name)), &[5, 9, 2], 40));
    let mut replies = Vec::new();
    for i in 0..8 {
        let mut client = served.generation().await;
        let asked = request("llama-tied", names[i % 2], &[5, 9, 2], 40);
        replies.push(tokio::spawn(async move { generate(&mut client, asked).await.unwrap().ids() }));
    }
    for (i, reply) in replies.into_iter().enumerate() {
        assert_eq!(reply.await.unwrap(), wanted[i % 2]);
    }
    let there = beside(&served, "llama-tied").await;
    assert!(there.len() == 1 && there[0].references == 0, "{there:?}");
    served.end().await;
}

/// What stands in a folder now counts, and not what stood there when it was first asked for.
#[tokio::test]
async fn a_folder_that_has_changed_is_read_anew() {
    let served = Served::with(with_room(8 << 20)).await;
    let mut client = served.generation().await;
    let folder = served.folder.0.join("mine");
    fs::create_dir_all(&folder).unwrap();
    let name = folder.display().to_string();
    for from in ["lora-llama", "lora-rslora-llama"] {
        let from = adapters().join("lora").join(from);
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            fs::copy(from.join(file), folder.join(file)).unwrap();
        }
        let wanted = alone("llama-tied", Some(&from), &[8, 4, 6], 12);
        let found = generate(&mut client, request("llama-tied", &name, &[8, 4, 6], 12)).await.unwrap();
        assert_eq!(found.ids(), wanted, "{}", from.display());
    }
    // Numbers that are none are found when it is read, and cost nobody else anything.
    let weights = folder.join("adapter_model.safetensors");
    let mut bytes = fs::read(&weights).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::remove_file(&weights).unwrap();
    fs::write(&weights, bytes).unwrap();
    let refused = generate(&mut client, request("llama-tied", &name, &[8, 4, 6], 4)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
    assert!(refused.message().contains("finite"), "{refused:?}");
    let wanted = alone("llama-tied", None, &[8, 4, 6], 12);
    let found = generate(&mut client, request("llama-tied", "", &[8, 4, 6], 12)).await.unwrap();
    assert_eq!(found.ids(), wanted);
    served.end().await;
}

#[tokio::test]
async fn adapters_that_cannot_be_used_are_refused_by_the_field() {
    let served = Served::with(with_room(64)).await;
    let mut client = served.generation().await;
    let absent = served.folder.0.join("none").display().to_string();
    for (model, adapter, word) in [
        ("llama-tied", "lora-llama", "models-adapter-bytes"),
        ("llama-tied", "lora-modules_to_save-llama", "whole tensor"),
        ("llama-tied", "nothing", "there is no adapter"),
        ("llama-tied", "../lora/lora-llama", "'..'"),
        ("llama-tied", "llama-tied", "there is no adapter"),
        ("llama-tied", absent.as_str(), "there is no adapter"),
        ("qwen3", "lora-gpt_neox", "a module that the model has"),
    ] {
        let refused = generate(&mut client, request(model, adapter, &[1, 2], 2)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
        let (fields, _) = super::fields(&refused);
        assert!(fields.iter().any(|field| field.contains("options.adapter")), "{adapter}: {fields:?}");
        assert!(refused.message().contains(word), "{adapter}: {refused:?}");
    }
    served.end().await;
}
