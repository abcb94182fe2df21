//! `cargo xtask goldens PATH`: copies from a folder of reference files what the tests read, in compact form.
//! It computes no golden: the reference files come from the original tools, which the tests never need.
//! Running it on the same reference changes nothing; what it changes, it names.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde_json::{Map, Value};

/// The checkpoints whose forward pass the tests repeat.
const MODELS: &[&str] = &[
    "gpt_neox",
    "gpt_neox-seq",
    "llama-tied",
    "llama-untied",
    "qwen2",
    "qwen3",
    "mistral",
    "mixtral",
    "phi3",
    "gemma2",
    "gemma3",
    "gpt_oss-bf16",
    "gpt_oss-mxfp4",
];

/// Whole folders that are copied as they are, and the files to take from them (none: all).
const FOLDERS: &[(&str, &[&str])] = &[
    ("real", &["valid.txt", "golden_ppl.json", "golden_ppl.safetensors"]),
    (
        "real/llama",
        &[
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "model.safetensors",
            "special_tokens_map.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ],
    ),
    ("sampling", &[]),
];

/// The quantized checkpoints, all that the reference has: what a test of weights needs of them.
const QUANTIZED: &[&str] = &["config.json", "golden.safetensors", "safetensors", "gguf"];

/// The adapters but those of models that cannot be run, and what of them is needed.
const ADAPTERS: &[&str] = &["adapter_config.json", "adapter_model.safetensors", "golden.safetensors"];
const ADAPTERS_LEFT_OUT: &[&str] = &["lora-mamba"];

/// Runs of training: one of each kind, the others being large. The test takes any that stand beside them.
const TRAINING: &[&str] = &["sft-qwen2", "sft-gpt_oss-bf16", "lora-dora-llama", "qlora-nf4-dq-gpt_neox"];

/// For people; the tests read the tensors.
const LEFT_OUT: &[&str] = &["golden.json"];

/// How many files were looked at, and which are new or other than before.
#[derive(Default)]
struct Tally {
    files: usize,
    changed: Vec<PathBuf>,
}

pub(crate) fn run(root: &Path, reference: &Path) -> Result<()> {
    let goldens = root.join("tests/goldens");
    let mut tally = Tally::default();
    for model in MODELS {
        copy_folder(reference, &goldens, &Path::new("models").join(model), &[], &mut tally)?;
    }
    let quantized = reference.join("quant");
    let listing =
        fs::read_dir(&quantized).with_context(|| format!("{}: no such reference", quantized.display()))?;
    for entry in listing {
        let below = Path::new("quant").join(entry?.file_name());
        copy_folder(reference, &goldens, &below, &[], &mut tally)?;
    }
    let adapters = reference.join("lora");
    let listing =
        fs::read_dir(&adapters).with_context(|| format!("{}: no such reference", adapters.display()))?;
    for entry in listing {
        let name = entry?.file_name();
        if !ADAPTERS_LEFT_OUT.iter().any(|left_out| name == *left_out) {
            copy_folder(reference, &goldens, &Path::new("lora").join(name), ADAPTERS, &mut tally)?;
        }
    }
    for run in TRAINING {
        copy_folder(reference, &goldens, &Path::new("train").join(run), &[], &mut tally)?;
    }
    for (folder, files) in FOLDERS {
        copy_folder(reference, &goldens, Path::new(folder), files, &mut tally)?;
    }
    println!("{} files in tests/goldens, {} changed", tally.files, tally.changed.len());
    for path in &tally.changed {
        println!("  changed: {}", path.display());
    }
    Ok(())
}

/// Copies the named files of a folder, or all of them; `below` is the folder's place on both sides.
fn copy_folder(from: &Path, to: &Path, below: &Path, names: &[&str], tally: &mut Tally) -> Result<()> {
    let source = from.join(below);
    let listing =
        fs::read_dir(&source).with_context(|| format!("{}: no such reference", source.display()))?;
    let mut files: Vec<String> = Vec::new();
    for entry in listing {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_quantized = below.starts_with("quant");
        let wanted = match is_quantized {
            true => QUANTIZED.iter().any(|end| name.ends_with(end)),
            false => names.is_empty() || names.contains(&name.as_str()),
        };
        if entry.path().is_file()
            && wanted
            && !(below.starts_with("models") && LEFT_OUT.contains(&name.as_str()))
        {
            files.push(name);
        }
    }
    files.sort();
    for name in names {
        ensure!(files.iter().any(|file| file == name), "{}: {name} is missing", source.display());
    }
    fs::create_dir_all(to.join(below))?;
    for name in files {
        let path = below.join(&name);
        let bytes = fs::read(from.join(&path)).with_context(|| format!("cannot read {}", path.display()))?;
        let (is_model, is_training) = (below.starts_with("models"), below.starts_with("train"));
        let compact = match name.as_str() {
            "golden.safetensors" if is_model => without_tensors(&bytes, |name| name.contains("hidden"))
                .with_context(|| format!("{} is not a safetensors file", path.display()))?,
            name if name == "golden_text.json" && is_model || name == "golden.json" && is_training => {
                let text =
                    String::from_utf8(bytes).with_context(|| format!("{} is not text", path.display()))?;
                minified(&text).into_bytes()
            }
            _ => bytes,
        };
        tally.files += 1;
        if fs::read(to.join(&path)).ok().as_ref() != Some(&compact) {
            fs::write(to.join(&path), compact).with_context(|| format!("cannot write {}", path.display()))?;
            tally.changed.push(path);
        }
    }
    Ok(())
}

/// JSON without the spaces between its tokens, and with letters where it has `\uXXXX` for them. Nothing else
/// changes: numbers keep their digits, keys their order, and what JSON must escape stays escaped.
fn minified(json: &str) -> String {
    let mut compact = String::with_capacity(json.len());
    let mut in_string = false;
    let mut rest = json;
    while let Some(c) = rest.chars().next() {
        let escape = if c == '\\' { escape(rest) } else { c.len_utf8() };
        match letters(&rest[..escape]) {
            Some(letters) => compact.push_str(&letters),
            None if in_string || !c.is_ascii_whitespace() => compact.push_str(&rest[..escape]),
            None => {}
        }
        in_string ^= c == '"';
        rest = &rest[escape..];
    }
    compact
}

/// Length of the escape that a text begins with; two halves of a surrogate pair are one.
fn escape(rest: &str) -> usize {
    let half =
        |at: usize| rest.get(at..at + 6).filter(|half| half.starts_with("\\ud") || half.starts_with("\\uD"));
    let length = match (half(0), half(6)) {
        (Some(_), Some(_)) => 12,
        _ if rest.starts_with("\\u") => 6,
        _ => 2,
    };
    // An escape that the end of the file cuts off is the reader's error to find, not ours.
    if rest.is_char_boundary(length) { length } else { rest.len() }
}

/// What an escape stands for, where JSON may hold it unescaped.
fn letters(escape: &str) -> Option<String> {
    if !escape.starts_with("\\u") {
        return None;
    }
    let letters: String = serde_json::from_str(&format!("\"{escape}\"")).ok()?;
    (letters.chars().all(|c| c >= '\u{7f}')).then_some(letters)
}

/// The same safetensors file without some tensors; the others keep their order and their bytes.
fn without_tensors(file: &[u8], is_dropped: impl Fn(&str) -> bool) -> Result<Vec<u8>> {
    let (length, rest) = file.split_first_chunk::<8>().context("shorter than its length field")?;
    let length = usize::try_from(u64::from_le_bytes(*length))?;
    let (header, data) = rest.split_at_checked(length).context("shorter than its header")?;
    let mut tensors = tensors(header)?;
    tensors.retain(|tensor| !is_dropped(&tensor.name));
    let mut entries = Vec::new();
    let mut kept: Vec<u8> = Vec::new();
    for tensor in &tensors {
        let bytes =
            data.get(tensor.begin..tensor.end).with_context(|| format!("{} is cut off", tensor.name))?;
        let begin = kept.len();
        kept.extend_from_slice(bytes);
        // By hand, because a JSON object of serde_json would sort these keys by name.
        entries.push(format!(
            "{}:{{\"dtype\":{},\"shape\":{},\"data_offsets\":[{begin},{}]}}",
            Value::from(tensor.name.as_str()),
            tensor.dtype,
            tensor.shape,
            kept.len()
        ));
    }
    let mut header = format!("{{{}}}", entries.join(","));
    while header.len() % 8 != 0 {
        header.push(' ');
    }
    let mut compact = u64::try_from(header.len())?.to_le_bytes().to_vec();
    compact.extend_from_slice(header.as_bytes());
    compact.extend_from_slice(&kept);
    Ok(compact)
}

/// One entry of a safetensors header.
struct Tensor {
    name: String,
    dtype: Value,
    shape: Value,
    begin: usize,
    end: usize,
}

/// The entries in the order of their data, which is the order in which the original tools write them.
fn tensors(header: &[u8]) -> Result<Vec<Tensor>> {
    let header: Map<String, Value> = serde_json::from_slice(header)?;
    let mut tensors = Vec::new();
    for (name, entry) in header {
        ensure!(name != "__metadata__", "a golden carries metadata, which this verb would lose");
        let offset = |index: usize| -> Result<usize> {
            let offset = entry["data_offsets"][index].as_u64();
            Ok(usize::try_from(offset.with_context(|| format!("{name} has no data_offsets"))?)?)
        };
        let (begin, end) = (offset(0)?, offset(1)?);
        let (dtype, shape) = (entry["dtype"].clone(), entry["shape"].clone());
        tensors.push(Tensor { name, dtype, shape, begin, end });
    }
    tensors.sort_by_key(|tensor| (tensor.begin, tensor.end));
    Ok(tensors)
}

#[cfg(test)]
mod tests {
    use super::{minified, without_tensors};

    #[test]
    fn spaces_go_only_between_tokens() {
        let json = r#"{ "a b" : [1, 2.50,	"\\" , "\" x : y"],
  "\u00e9\ud83d\ude00" : "\u0000\ud83d\n\"" }"#;
        let expected = r#"{"a b":[1,2.50,"\\","\" x : y"],"é😀":"\u0000\ud83d\n\""}"#;
        assert_eq!(minified(json), expected);
    }

    fn file(header: &str, data: &[u8]) -> Vec<u8> {
        let length = u64::try_from(header.len()).unwrap().to_le_bytes();
        [&length[..], header.as_bytes(), data].concat()
    }

    #[test]
    fn kept_tensors_keep_bytes_and_order() {
        let entry = |name: &str, begin: usize, end: usize| {
            format!(r#""{name}":{{"dtype":"U8","shape":[{}],"data_offsets":[{begin},{end}]}}"#, end - begin)
        };
        let before = [entry("z", 0, 2), entry("hidden.0", 2, 5), entry("a", 5, 6)].join(",");
        let after = [entry("z", 0, 2), entry("a", 2, 3)].join(",");
        let padded = |entries: String| {
            let header = format!("{{{entries}}}");
            let width = header.len().next_multiple_of(8);
            format!("{header:width$}")
        };
        let compact =
            without_tensors(&file(&padded(before), b"zzhhha"), |name| name.contains("hidden")).unwrap();
        assert_eq!(compact, file(&padded(after), b"zza"));
    }

    #[test]
    fn broken_files_are_errors() {
        for broken in [&b""[..], &[255; 8], &[2, 0, 0, 0, 0, 0, 0, 0, b'{']] {
            assert!(without_tensors(broken, |_| false).is_err(), "{broken:?}");
        }
    }
}
