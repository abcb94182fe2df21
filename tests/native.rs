//! Native files from inside: what they hold is what the checkpoint becomes, and a file that fails under a running model
//! fails that model alone. How a user meets them is tested beside the command line.

use std::fs;
use std::path::PathBuf;

use bantam_core::{Cpu, Precision};
use bantam_model::checkpoint::Checkpoint;
use bantam_model::engine::{Chunk, Engine, StepError};
use bantam_model::formats::on_load::way;
use bantam_model::native::{Native, Store, VERSION};
use bantam_model::plan::Options;
use bantam_model::source::Source;
use bantam_tests::{model_folder, options};

/// A model, its options and a cache that is gone when the test ends.
struct Place {
    source: Source,
    options: Options,
    folder: PathBuf,
}

impl Place {
    fn new(label: &str, model: &str, options: Options) -> Place {
        let folder = std::env::temp_dir().join(format!("bantam-native-{}-{label}", std::process::id()));
        let source = Source::open(&model_folder(model)).expect("the golden opens");
        Place { source, options, folder }
    }

    fn native(&self) -> Native {
        let plan = self.source.plan(self.options, Cpu::detect()).expect("the golden has a plan");
        Native::of(&self.source, &plan, &Store::new(self.folder.clone())).expect("it is worth a file")
    }

    fn load(&self) -> Engine {
        let native = self.native();
        let engine = self.source.load(self.options, Cpu::detect(), 2, Some(&native), &mut |_| {});
        let engine = engine.expect("the golden loads");
        if !engine.is_mapped() {
            self.source.keep(&engine, &native, &mut |_| {}).expect("the native file is written");
        }
        engine
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn int8() -> Options {
    Options { quantization: way("int8"), precision: Precision::Fast, ..options() }
}

/// A quantized model with columns in an order of their own, from where models of formats are.
const ORDERED: &str = "../quant/gptq-4b-g128-desc-llama";

fn logits(engine: &mut Engine) -> Result<Vec<u32>, StepError> {
    let sequence = engine.open().expect("one is free");
    let stepped = engine.step(&[Chunk { sequence, tokens: &[1, 2, 3] }]);
    engine.close(sequence);
    stepped.map(|()| engine.logits(&[2]).iter().map(|x| x.to_bits()).collect())
}

#[test]
fn a_mapped_model_computes_the_same_bits() {
    let models = [("int8", "qwen2"), ("packed", "gpt_oss-mxfp4"), ("ordered", ORDERED)];
    for ((label, model), options) in models.into_iter().zip([int8(), options(), options()]) {
        let place = Place::new(label, model, options);
        let (mut repacked, mut mapped) = (place.load(), place.load());
        assert!(!repacked.is_mapped() && mapped.is_mapped(), "{model}");
        assert_eq!(repacked.memory_bytes(), mapped.memory_bytes(), "{model}");
        assert_eq!(logits(&mut repacked), logits(&mut mapped), "{model}");
    }
}

/// Weights may be any numbers, an order of columns may not.
#[test]
#[cfg(unix)]
fn an_order_that_leads_nowhere_is_not_followed() {
    let place = Place::new("disorder", ORDERED, options());
    let wanted = logits(&mut place.load());
    let path = place.native().path().to_owned();
    let file = Checkpoint::open(&path).expect("it was written");
    let order =
        file.tensors().find(|tensor| tensor.name.ends_with("(order of columns)")).expect("it has some");
    let mut bytes = fs::read(&path).expect("it is there");
    let at = bytes.windows(order.data.len()).position(|part| part == order.data).expect("it is in the file");
    let time = fs::metadata(&path).and_then(|metadata| metadata.modified()).expect("it has a time");
    bytes[at + 4..at + 8].copy_from_slice(&1_000_000u32.to_le_bytes());
    fs::remove_file(&path).and_then(|()| fs::write(&path, bytes)).expect("the folder is ours");
    let changed = fs::OpenOptions::new().write(true).open(&path);
    changed.and_then(|file| file.set_modified(time)).expect("it is ours");
    let mut again = place.load();
    assert!(!again.is_mapped());
    assert_eq!(logits(&mut again), wanted);
    assert!(place.load().is_mapped(), "it was replaced");
}

/// A file cut short raises SIGBUS where it is touched.
#[test]
#[cfg(target_os = "linux")]
fn a_fault_in_a_mapped_file_fails_that_model_and_no_other() {
    let place = Place::new("fault", "gpt_oss-mxfp4", options());
    let mut repacked = place.load();
    let wanted = logits(&mut repacked).expect("it runs");
    let (mut mapped, mut other) = (place.load(), Place::new("other", "qwen2", int8()));
    other.options.context = 64;
    let mut sound = other.load();
    let path = place.native().path().to_owned();
    let mut permissions = fs::metadata(&path).expect("it is there").permissions();
    std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
    fs::set_permissions(&path, permissions).expect("it is ours");
    fs::OpenOptions::new().write(true).open(&path).and_then(|file| file.set_len(1)).expect("it is cut");
    assert_eq!(logits(&mut mapped), Err(StepError::Fault));
    assert_eq!(logits(&mut mapped), Err(StepError::Fault), "it does not recover");
    assert!(logits(&mut sound).is_ok() && logits(&mut repacked).as_ref() == Ok(&wanted));
    drop(mapped);
    // The next load finds the file cut and replaces it; the one after maps it, watched anew.
    assert!(!place.load().is_mapped());
    let mut again = place.load();
    assert!(again.is_mapped());
    assert_eq!(logits(&mut again), Ok(wanted));
}

/// Who changes what a layout or a format makes of a checkpoint must not have yesterday's files believed.
#[test]
fn a_change_of_what_is_packed_is_a_new_version() {
    let digest = |label: &str, model: &str, options: Options| {
        let place = Place::new(label, model, options);
        place.load();
        let file = Checkpoint::open(place.native().path()).expect("it was written");
        // Layout, shape and checksum of every tensor; computed values may differ between machines.
        let notes =
            file.metadata().filter(|(name, _)| !name.starts_with("values") && file.tensor(name).is_some());
        notes
            .flat_map(|(_, note)| note.bytes())
            .fold(0xcbf2_9ce4_8422_2325u64, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
    };
    let found = [digest("a", "qwen2", int8()), digest("b", "gpt_oss-mxfp4", options())];
    assert_eq!(
        (VERSION, found),
        (2, [8974422054767215312, 8420244350658694902]),
        "the bytes of native files are others: raise model/src/native VERSION and write both here; where a plan merely \
         chooses other layouts now, the version may stay"
    );
}

/// A folder whose weights are a native file alone is the model, wherever it lies, and nothing to start other work from.
#[test]
fn a_native_file_can_stand_alone() {
    for (label, model) in [("alone-packed", "gpt_oss-mxfp4"), ("alone-ordered", ORDERED)] {
        let place = Place::new(label, model, Options { precision: Precision::Fast, ..options() });
        let (source, options) = (&place.source, place.options);
        let mut engine = source.load(options, Cpu::detect(), 2, None, &mut |_| {}).expect("it loads");
        let wanted = logits(&mut engine);
        let (first, moved) = (place.folder.join("first"), place.folder.join("moved"));
        fs::create_dir_all(&first).expect("the folder is ours");
        fs::copy(model_folder(model).join("config.json"), first.join("config.json")).expect("copied");
        let plan = source.plan(options, Cpu::detect()).expect("the golden has a plan");
        let native = Native::alone(source, &plan, &first.join("native.safetensors"));
        source.keep(&engine, &native, &mut |_| {}).expect("it is written");
        fs::rename(&first, &moved).expect("the folder is ours");

        let alone = Source::open(&moved).expect("it opens");
        let load = |options| alone.load(options, Cpu::detect(), 1, None, &mut |_| {});
        let mut mapped = load(Options { context: 64, chunk: 16, ..options }).expect("it is mapped");
        assert!(mapped.is_mapped());
        assert_eq!(logits(&mut mapped), wanted, "{model}");
        if model != ORDERED {
            // All of the other model is quantized already, so that there is but one plan.
            let other = load(Options { quantization: way("int8"), ..options });
            let message = other.expect_err("it is another plan").to_string();
            assert!(message.contains("native.safetensors") && message.contains("leave those"), "{message}");
        }
        let message = alone.check_tensors().expect_err("they are gone").to_string();
        assert!(message.contains("start from the model"), "{message}");
        let tensor = alone.checkpoint.tensors().next().expect("it is told of");
        assert!(tensor.load_f32(0, &mut [0.0], &mut Vec::new()).is_err(), "zeros are no weights");

        // One bit of what it says of itself, and one byte less.
        let path = moved.join("native.safetensors");
        let bytes = fs::read(&path).expect("it is there");
        let text = String::from_utf8_lossy(&bytes);
        let at = text.find("\"key\"").expect("it has one") + 8;
        let mut damaged = bytes.clone();
        damaged[at] = if damaged[at] == b'0' { b'1' } else { b'0' };
        let write = |bytes: &[u8]| fs::remove_file(&path).and_then(|()| fs::write(&path, bytes));
        write(&damaged).expect("the folder is ours");
        let again = Source::open(&moved).expect("it opens");
        assert!(again.load(options, Cpu::detect(), 1, None, &mut |_| {}).is_err());
        write(&bytes[..bytes.len() - 1]).expect("the folder is ours");
        assert!(Source::open(&moved).is_err());
    }
}
