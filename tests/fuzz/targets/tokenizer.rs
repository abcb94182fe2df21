//! Fuzzes `tokenizer.json`: a tokenizer comes of it, or an error.
#![no_main]

use bantam_model::tokenizer::Tokenizer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let _ = Tokenizer::from_bytes(input, None, None);
});
