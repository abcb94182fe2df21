//! Quantized checkpoints that nobody honest wrote: for every format, what its tensors and its configuration can get
//! wrong is refused, with a message that names the tensor or the key, and before anything is computed with it.
//!
//! Every case is a golden with one thing changed, all in its first layer, so whatever passes is found.
#![allow(clippy::unwrap_used, reason = "a test may stop where it stands")]

use std::fs;
use std::path::{Path, PathBuf};

use bantam_core::Cpu;
use bantam_model::checkpoint::writer::write_safetensors;
use bantam_model::checkpoint::{Checkpoint, Dtype};
use bantam_model::engine::Engine;
use bantam_model::spec::ModelSpec;
use bantam_tests::{options, repository};
use serde_json::{Value, json};

/// A folder that is gone when the test ends.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

#[derive(Clone)]
struct Tensor {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    data: Vec<u8>,
}

/// A golden in parts.
#[derive(Clone)]
struct Model {
    config: Value,
    tensors: Vec<Tensor>,
}

impl Model {
    fn read(path: &str) -> Model {
        let folder = repository("tests/goldens").join(path);
        let checkpoint = Checkpoint::open(&folder).unwrap();
        let tensors = checkpoint.tensors().map(|tensor| Tensor {
            name: tensor.name.to_owned(),
            dtype: tensor.dtype,
            shape: tensor.shape.to_vec(),
            data: tensor.data.to_vec(),
        });
        let config = serde_json::from_slice(&fs::read(folder.join("config.json")).unwrap()).unwrap();
        Model { config, tensors: tensors.collect() }
    }

    /// The message with which it is refused; `None` where it loads.
    fn refusal(&self, folder: &Path) -> Option<String> {
        let spec = match ModelSpec::parse(self.config.to_string().as_bytes()) {
            Ok(spec) => spec,
            Err(error) => return Some(error.to_string()),
        };
        let tensors: Vec<_> = self
            .tensors
            .iter()
            .map(|t| (t.name.as_str(), t.dtype, t.shape.as_slice(), t.data.as_slice()))
            .collect();
        write_safetensors(&folder.join("model.safetensors"), &tensors, &[]).unwrap();
        let checkpoint = Checkpoint::open(folder).unwrap();
        Engine::load(spec, &checkpoint, options(), Cpu::detect(), 1).err().map(|error| error.to_string())
    }

    /// The same with one tensor changed; `None` removes it.
    fn with(&self, name: &str, change: impl FnOnce(&mut Tensor) -> bool) -> Model {
        let mut model = self.clone();
        let at = model.tensors.iter().position(|tensor| tensor.name == name);
        let at = at.unwrap_or_else(|| panic!("no tensor {name}"));
        if !change(&mut model.tensors[at]) {
            model.tensors.remove(at);
        }
        model
    }
}

/// What every case goes through.
struct Trial {
    label: String,
    folder: Folder,
    model: Model,
}

impl Trial {
    fn new(path: &str) -> Trial {
        let label = path.replace('/', "-");
        let folder = std::env::temp_dir().join(format!("bantam-formats-{}-{label}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let trial = Trial { label, folder: Folder(folder), model: Model::read(path) };
        assert_eq!(trial.model.refusal(&trial.folder.0), None, "the golden itself loads");
        trial
    }

    fn check(&self, what: &str, model: &Model, word: &str) {
        let label = &self.label;
        let Some(message) = model.refusal(&self.folder.0) else { panic!("{label}: {what}: accepted") };
        assert!(message.contains(word), "{label}: {what}: expected {word:?} in: {message}");
        assert!(message.len() < 4096, "{label}: {what}: {} bytes", message.len());
        assert!(!message.chars().any(char::is_control), "{label}: {what}: {message:?}");
    }

    /// Missing, cut, reshaped, of another type, and where they are numbers, none.
    fn tensors(&self, module: &str, suffixes: &[&str]) {
        for suffix in suffixes {
            let name = format!("{module}{suffix}");
            let case = |what: &str, model: Model| self.check(&format!("{what} {suffix}"), &model, module);
            case("missing", self.model.with(&name, |_| false));
            for shape in [vec![0], vec![1], vec![1, 1, 1]] {
                let model = self.model.with(&name, |tensor| {
                    tensor.data.truncate(shape.iter().product::<usize>() * tensor.dtype.bytes());
                    tensor.data.resize(shape.iter().product::<usize>() * tensor.dtype.bytes(), 0);
                    tensor.shape = shape.clone();
                    true
                });
                let same = self.model.tensors.iter().find(|tensor| tensor.name == name).unwrap();
                if same.shape != shape {
                    case("cut", model);
                }
            }
            let half = self.model.with(&name, |tensor| {
                tensor.shape[0] += 1;
                let line = tensor.shape[1..].iter().product::<usize>() * tensor.dtype.bytes();
                tensor.data.resize(tensor.data.len() + line, 0);
                true
            });
            case("one more row of", half);
            case(
                "another type of",
                self.model.with(&name, |tensor| {
                    tensor.dtype = match tensor.dtype.bytes() {
                        1 if tensor.dtype == Dtype::Bool => Dtype::U8,
                        1 => Dtype::Bool,
                        2 => Dtype::U16,
                        4 => Dtype::U32,
                        _ => Dtype::U64,
                    };
                    true
                }),
            );
            if self.model.tensors.iter().any(|tensor| tensor.name == name && tensor.dtype.is_float()) {
                for bits in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                    case(
                        "no number in",
                        self.model.with(&name, |tensor| {
                            let upper = &bits.to_le_bytes()[2..];
                            match tensor.dtype {
                                Dtype::F16 => tensor.data[..2].copy_from_slice(&[0, 0x7C | upper[1] & 0x80]),
                                Dtype::Bf16 => tensor.data[..2].copy_from_slice(upper),
                                _ => tensor.data[..4].copy_from_slice(&bits.to_le_bytes()),
                            }
                            true
                        }),
                    );
                }
            }
        }
    }

    /// Other bytes at a tensor's beginning.
    fn bytes(&self, name: &str, bytes: &[u8]) {
        let model = self.model.with(name, |tensor| {
            tensor.data[..bytes.len()].copy_from_slice(bytes);
            true
        });
        self.check(&format!("{bytes:?}"), &model, name);
    }

    /// Other values of a key of `quantization_config`, at a path below it.
    fn config(&self, path: &str, values: &[Value], word: &str) {
        for value in values {
            let mut model = self.model.clone();
            let place = model.config.pointer_mut(&format!("/quantization_config{path}"));
            *place.unwrap_or_else(|| panic!("{}: no {path}", self.label)) = value.clone();
            self.check(&format!("{path} = {value}"), &model, word);
        }
    }

    /// Numbers that are no sizes.
    fn size(&self, path: &str, key: &str) {
        let values =
            [json!(0), json!(-2), json!(1.5), json!("4"), json!(1u64 << 40), json!(u64::MAX), json!([])];
        self.config(path, &values, key);
    }
}

const Q: &str = "model.layers.0.self_attn.q_proj";

#[test]
fn four_bits_by_a_code_book() {
    let trial = Trial::new("quant/bnb-nf4-dq-llama");
    let suffixes = ["", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"];
    trial.tensors(&format!("{Q}.weight"), &suffixes);
    let state = format!("{Q}.weight.quant_state.bitsandbytes__nf4");
    trial.check("no state", &trial.model.with(&state, |_| false), &state);
    for text in [
        "{",
        "[]",
        "null",
        "{\"blocksize\":0}",
        "{\"blocksize\":-64}",
        "{\"blocksize\":63}",
        "{\"blocksize\":1e400}",
        "{\"blocksize\":18446744073709551615}",
        "{\"blocksize\":128}",
        "{\"nested_blocksize\":0}",
        "{\"nested_blocksize\":\"256\"}",
        "{\"nested_blocksize\":128}",
        "{\"nested_offset\":1e300}",
        "{\"shape\":[64,64]}",
        "{\"shape\":[128]}",
        "{\"shape\":[9223372036854775807,2]}",
        "{\"nested_offset\":[]}",
        "\u{1b}[2J",
    ] {
        let model = trial.model.with(&state, |tensor| {
            (tensor.data, tensor.shape) = (text.as_bytes().to_vec(), vec![text.len()]);
            true
        });
        trial.check(text, &model, &format!("{Q}.weight"));
    }
    let deep = trial.model.with(&state, |tensor| {
        (tensor.data, tensor.shape) = ("[".repeat(1 << 20).into_bytes(), vec![1 << 20]);
        true
    });
    trial.check("a state of a million bytes", &deep, &state);
    trial.config("/quant_method", &[json!("gptq"), json!("awq"), json!("eetq"), json!(""), json!(4)], "");
    trial.config("/load_in_8bit", &[json!(true), json!(1)], "load_in_8bit");
}

#[test]
fn eight_bits_by_row() {
    let trial = Trial::new("quant/bnb-int8-llama");
    trial.tensors(Q, &[".weight", ".SCB"]);
    trial.bytes(&format!("{Q}.weight_format"), &[1]);
    let trial = Trial::new("quant/eetq-int8-llama");
    trial.tensors(Q, &[".weight", ".weight_scales"]);
    trial.config("/weights", &[json!("int4"), json!(8)], "weights");
}

#[test]
fn gptq() {
    let trial = Trial::new("quant/gptq-4b-g128-desc-llama");
    trial.tensors(Q, &[".qweight", ".qzeros", ".scales"]);
    for group in [-1i32, 1, 128, i32::MAX, i32::MIN] {
        trial.bytes(&format!("{Q}.g_idx"), &group.to_le_bytes());
    }
    trial.size("/bits", "bits");
    trial.config("/bits", &[json!(1), json!(5), json!(7)], "bits");
    trial.config("/bits", &[json!(2), json!(3), json!(8)], Q);
    trial.size("/group_size", "group_size");
    trial.config("/group_size", &[json!(32), json!(1), json!(100)], Q);
    trial.config("/checkpoint_format", &[json!("marlin"), json!(2)], "checkpoint_format");
}

#[test]
fn awq() {
    for (path, group) in [("quant/awq-gemm-g64-qwen2", 32), ("quant-made/awq-gemv-g32-llama", 256)] {
        let trial = Trial::new(path);
        trial.tensors(Q, &[".qweight", ".qzeros", ".scales"]);
        trial.size("/group_size", "group_size");
        trial.config("/group_size", &[json!(group)], Q);
        trial.config("/bits", &[json!(3), json!(0), json!("4")], "bits");
        trial.config("/version", &[json!("gemv_fast"), json!("marlin"), json!(1)], "version");
    }
    let trial = Trial::new("quant/awq-gemm-g128-gpt_neox");
    let divisors = "gpt_neox.layers.0.mlp.act.scales";
    for bytes in [[0, 0], [0, 0x7C], [1, 0x7E]] {
        trial.bytes(divisors, &bytes);
    }
    let short = trial.model.with(divisors, |tensor| {
        tensor.data.truncate(2);
        tensor.shape = vec![1];
        true
    });
    trial.check("one divisor", &short, divisors);
}

#[test]
fn hqq() {
    for name in ["hqq-2b-g32-llama", "hqq-3b-g64-llama", "hqq-4b-g64-llama"] {
        let trial = Trial::new(&format!("quant/{name}"));
        trial.tensors(Q, &[".W_q", ".scale", ".zero"]);
        trial.bytes(&format!("{Q}.nbits"), &8i32.to_le_bytes());
        trial.bytes(&format!("{Q}.axis"), &0i32.to_le_bytes());
        trial.bytes(&format!("{Q}.group_size"), &i32::MIN.to_le_bytes());
        trial.bytes(&format!("{Q}.shape"), &i64::MAX.to_le_bytes());
        let place = "/quant_config/weight_quant_params";
        trial.size(&format!("{place}/nbits"), "nbits");
        trial.size(&format!("{place}/group_size"), "group_size");
        trial.config(&format!("{place}/group_size"), &[json!(16), json!(1), json!(1 << 20)], Q);
        trial.config(&format!("{place}/axis"), &[json!(2), json!("1")], "axis");
        trial.config(&format!("{place}/axis"), &[json!(0)], Q);
        trial.config("/quant_config/scale_quant_params", &[json!({})], "scale_quant_params");
        trial.config("/quant_config", &[json!(null), json!([]), json!({})], "");
    }
}

#[test]
fn aqlm() {
    let trial = Trial::new("quant/aqlm-1x10-llama");
    trial.tensors(Q, &[".codes", ".codebooks", ".scales"]);
    for code in [1024i16, -513, i16::MIN, i16::MAX] {
        trial.bytes(&format!("{Q}.codes"), &code.to_le_bytes());
    }
    trial.size("/nbits_per_codebook", "nbits_per_codebook");
    trial.size("/num_codebooks", "num_codebooks");
    trial.size("/in_group_size", "in_group_size");
    trial.config("/nbits_per_codebook", &[json!(16), json!(8), json!(9)], Q);
    trial.config("/num_codebooks", &[json!(2), json!(64)], Q);
    trial.config("/in_group_size", &[json!(1), json!(1024)], Q);
    trial.config("/out_group_size", &[json!(2), json!(0)], "out_group_size");
}

#[test]
fn compressed_tensors() {
    for (name, zeros) in [("ct-int4-g128-sym-llama", false), ("ct-int4-g128-asym-qwen2", true)] {
        let trial = Trial::new(&format!("quant/{name}"));
        trial.tensors(Q, &[".weight_packed", ".weight_scale"]);
        if zeros {
            let cut = trial.model.with(&format!("{Q}.weight_zero_point"), |tensor| {
                tensor.data.truncate(4);
                tensor.shape = vec![1, 1];
                true
            });
            trial.check("one zero", &cut, Q);
        }
        trial.bytes(&format!("{Q}.weight_shape"), &i64::MAX.to_le_bytes());
        let place = "/config_groups/group_0/weights";
        trial.size(&format!("{place}/num_bits"), "num_bits");
        trial.size(&format!("{place}/group_size"), "group_size");
        trial.config(&format!("{place}/group_size"), &[json!(32), json!(1)], Q);
        trial.config(&format!("{place}/num_bits"), &[json!(8)], Q);
        trial.config(&format!("{place}/type"), &[json!("float")], "type");
        trial.config(&format!("{place}/strategy"), &[json!("block"), json!(1)], "strategy");
        trial.config("/config_groups", &[json!(null), json!({}), json!({"a": 1}), json!(1)], "config_groups");
    }
}

#[test]
fn bitnet() {
    let trial = Trial::new("quant-made/bitnet-llama");
    trial.tensors(Q, &[".weight", ".weight_scale"]);
    trial.bytes(&format!("{Q}.weight"), &[0b11]);
    trial.bytes(&format!("{Q}.weight"), &[0b1100_0000]);
    trial.bytes(&format!("{Q}.weight_scale"), &[0, 0]);
    trial.config("/linear_class", &[json!("other"), json!(1)], "linear_class");
}

#[test]
fn mxfp4() {
    let trial = Trial::new("models/gpt_oss-mxfp4");
    let experts = "model.layers.0.mlp.experts.gate_up_proj";
    trial.tensors(experts, &["_blocks", "_scales"]);
    trial.bytes(&format!("{experts}_scales"), &[255]);
    // 6 * 2^127 is beyond float32.
    let model = trial.model.with(&format!("{experts}_scales"), |tensor| {
        tensor.data.fill(254);
        true
    });
    trial.check("scales beyond all numbers", &model, experts);
}
