//! Fuzzes the safetensors header: never a panic, and what is accepted covers the file exactly.
#![no_main]

use bantam_model::checkpoint::header::{PREFIX_BYTES, parse};
use libfuzzer_sys::fuzz_target;

// The first byte says how much data follows the header; the length is made right half of the time, because a
// mutator rarely finds it.
fuzz_target!(|input: &[u8]| {
    let Some((&knob, text)) = input.split_first() else {
        return;
    };
    let bytes =
        if knob & 1 == 0 { [&(text.len() as u64).to_le_bytes(), text].concat() } else { text.to_vec() };
    let file_len = bytes.len() as u64 + u64::from(knob >> 1);
    let Ok(header) = parse(&bytes, file_len) else {
        return;
    };
    let mut at = PREFIX_BYTES + header.bytes();
    for entry in header.entries() {
        let size = entry.shape.iter().product::<usize>() * entry.dtype.bytes();
        assert_eq!((entry.start, entry.end), (at, at + size as u64), "{entry:?}");
        at = entry.end;
    }
    assert_eq!(at, file_len);
});
