//! Fuzzes GGUF files: whatever a head says, settings, a vocabulary and values come of it or errors.
#![no_main]

use bantam_model::gguf::{Container, decoded, files_of};
use bantam_model::spec::ModelSpec;
use bantam_model::tokenizer::Tokenizer;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(head) = Container::parse(input, input.len() as u64) else {
        return;
    };
    decoded(&head, input);
    let [config, tokenizer, tokenizer_config] = files_of(head);
    if let Ok(Some(config)) = config {
        let _ = ModelSpec::parse(&config);
    }
    if let (Ok(Some(tokenizer)), Ok(Some(config))) = (tokenizer, tokenizer_config)
        && let Ok(tokenizer) = Tokenizer::from_bytes(&tokenizer, Some(&config), None)
    {
        let _ = tokenizer.encode("a b\u{e9} 12", true);
    }
});
