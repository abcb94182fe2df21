//! Fuzzes `config.json`: an architecture comes of it, or an error.
#![no_main]

use bantam_model::spec::ModelSpec;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let _ = ModelSpec::parse(input);
});
