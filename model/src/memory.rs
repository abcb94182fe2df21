//! Memory of exactly the planned size, zeroed, in large pages where the system gives them.

use std::io;

use bantam_core::Arena;
use memmap2::MmapMut;

/// Asks the system for a region. Pages come when they are first touched.
pub fn region(bytes: usize) -> io::Result<MmapMut> {
    // A map of nothing is an error; a plan without a cache asks for nothing.
    let map = MmapMut::map_anon(bytes.max(1))?;
    #[cfg(target_os = "linux")]
    if bytes >= 2 << 20 {
        // Fewer page walks while weights stream by. A system that has none to give runs on without.
        let _ = map.advise(memmap2::Advice::HugePage);
    }
    Ok(map)
}

/// The three regions of an arena.
pub fn arena(weights: usize, cache: usize, work: usize) -> io::Result<Arena<MmapMut>> {
    Ok(Arena::new(region(weights)?, region(cache)?, region(work)?))
}

/// Memory that the system could give now without swapping, in bytes; `None` where it cannot be told.
pub fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
