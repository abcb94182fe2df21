//! Fuzzes the shard index: never a panic, and what is accepted names plain files.
#![no_main]

use bantam_model::checkpoint::index::parse;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Ok(index) = parse(input) else { return };
    let shards: Vec<_> = index.shards().collect();
    assert!(shards.iter().all(|shard| !shard.contains(['/', '\\', '\0']) && *shard != ".."));
    assert!(index.tensors().all(|(_, shard)| shard < shards.len()));
});
