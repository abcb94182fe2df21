//! Fuzzes `tokenizer.json`: a tokenizer comes of it, or an error.
#![no_main]

use bantam_model::tokenizer::Tokenizer;
use libfuzzer_sys::fuzz_target;

// The library below panics on some files and `Tokenizer` catches that; libFuzzer's own hook would abort before it can.
// A panic that nobody catches still ends the run.
fuzz_target!(init: std::panic::set_hook(Box::new(|_| {})), |input: &[u8]| {
    let _ = Tokenizer::from_bytes(input, None, None);
});
