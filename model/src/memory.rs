//! Memory of exactly the planned size, zeroed, in large pages where the system gives them.

use std::io;
use std::path::Path;

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

/// The same for a region that stays empty here and there: what is not touched is not taken.
pub fn region_of_small_pages(bytes: usize) -> io::Result<MmapMut> {
    let map = MmapMut::map_anon(bytes.max(1))?;
    #[cfg(target_os = "linux")]
    let _ = map.advise(memmap2::Advice::NoHugePage);
    Ok(map)
}

/// The regions of an arena, of which the weights are there already; without room for adapters.
pub fn arena(weights: MmapMut, cache: usize, work: usize) -> io::Result<Arena<MmapMut>> {
    Ok(Arena::new(weights, region(cache)?, region(work)?))
}

/// Memory that the system could give now without swapping, in bytes; `None` where it cannot be told. A container's
/// limit counts, and that of a shell.
pub fn available() -> Option<u64> {
    let free = meminfo("MemAvailable:")?;
    Some(limit_and_use().map_or(free, |limited| free.min(room(limited))))
}

/// All memory of the machine, in bytes; `None` where it cannot be told.
pub fn total() -> Option<u64> {
    meminfo("MemTotal:")
}

/// The most memory that this process has had at once, in bytes, mapped files included; `None` where it cannot be told.
pub fn peak() -> Option<u64> {
    kibibytes(&std::fs::read_to_string("/proc/self/status").ok()?, "VmHWM:")
}

/// What this process and those beside it may take at most, where that is less than all memory: the limit of a
/// container or service, or of the shell (`ulimit -v`, `ulimit -d`).
pub fn limit() -> Option<u64> {
    limit_and_use().map(|(limit, _)| limit)
}

fn meminfo(key: &str) -> Option<u64> {
    kibibytes(&std::fs::read_to_string("/proc/meminfo").ok()?, key)
}

/// The bytes of a line such as `MemTotal: 7 kB`.
fn kibibytes(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.saturating_mul(1024))
}

/// What a limit and the use of it leave.
fn room((limit, used): (u64, u64)) -> u64 {
    limit.saturating_sub(used)
}

/// The limit that leaves least, and what is used of it.
fn limit_and_use() -> Option<(u64, u64)> {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let total = total()?;
    let group = tightest(&read("/proc/self/cgroup"), Path::new("/sys/fs/cgroup"));
    // No limit is spelled as one that is larger than any machine.
    let group = group.filter(|&(limit, _)| limit < total);
    let own = of_process(&read("/proc/self/limits"), &read("/proc/self/status"));
    group.into_iter().chain(own).min_by_key(|&limited| room(limited))
}

/// The limit of this process alone with the least room, as `ulimit` sets it, and what is used of it.
fn of_process(limits: &str, status: &str) -> Option<(u64, u64)> {
    let kinds = [("Max address space", "VmSize:"), ("Max data size", "VmData:")];
    let limited = |(name, used): (&str, &str)| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name))?;
        // The soft limit comes first; `unlimited` is no number.
        let limit = line.split_whitespace().next()?.parse::<u64>().ok()?;
        Some((limit, kibibytes(status, used)?))
    };
    kinds.into_iter().filter_map(limited).min_by_key(|&limited| room(limited))
}

/// The control group with the least room, of all that hold this process: its limit, and what is used of it beside
/// files that can be dropped.
fn tightest(groups: &str, root: &Path) -> Option<(u64, u64)> {
    let number = |path: &Path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    // Weights that are mapped from a native file are active, and can be dropped and read again all the same.
    let droppable = |folder: &Path, prefix: &str| {
        let text = std::fs::read_to_string(folder.join("memory.stat")).unwrap_or_default();
        let bytes = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(prefix)?.strip_prefix(key));
            line.and_then(|line| line.trim().parse::<u64>().ok()).unwrap_or(0)
        };
        bytes("inactive_file ").saturating_add(bytes("active_file "))
    };
    let mut found: Option<(u64, u64)> = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let (root, names) = match controllers {
            "" => (root.to_owned(), ["memory.max", "memory.current", ""]),
            "memory" => (root.join("memory"), ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_"]),
            _ => continue,
        };
        // Inside a container the path may be that of the host, and then only the root is there.
        for folder in Path::new(path.trim_start_matches('/')).ancestors().map(|group| root.join(group)) {
            let limit = number(&folder.join(names[0]));
            let used = number(&folder.join(names[1]));
            let (Some(limit), Some(used)) = (limit, used) else { continue };
            let used = used.saturating_sub(droppable(&folder, names[2]));
            if found.is_none_or(|other| room((limit, used)) < room(other)) {
                found = Some((limit, used));
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_tightest_control_group_counts() {
        let root = std::env::temp_dir().join(format!("bantam-cgroup-{}", std::process::id()));
        let write = |group: &str, files: &[(&str, &str)]| {
            fs::create_dir_all(root.join(group)).unwrap();
            files.iter().for_each(|(name, text)| fs::write(root.join(group).join(name), text).unwrap());
        };
        write("a/b", &[("memory.max", "max\n"), ("memory.current", "70\n")]);
        write("a", &[("memory.max", "1000\n"), ("memory.current", "300\n")]);
        write("a", &[("memory.stat", "anon 1\ninactive_file 70\nactive_file 30\n")]);
        assert_eq!(tightest("0::/a/b\n", &root), Some((1000, 200)));
        assert_eq!(tightest("1:cpu:/a\nnonsense\n", &root), None);
        write("memory/c", &[("memory.limit_in_bytes", "500\n"), ("memory.usage_in_bytes", "10\n")]);
        assert_eq!(tightest("0::/a/b\n4:memory:/c/d\n", &root), Some((500, 10)));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn the_tightest_limit_of_a_process_counts() {
        let limits = |data: &str, space: &str| {
            format!(
                "Limit   Soft Limit  Hard Limit  Units\nMax data size   {data} unlimited bytes\n\
                 Max open files  10 20 files\nMax address space {space} unlimited bytes\n"
            )
        };
        let status = "Name:\tbantam\nVmSize:\t  3 kB\nVmData:\t 1 kB\n";
        let of = |data, space| of_process(&limits(data, space), status);
        assert_eq!(of("unlimited", "unlimited"), None);
        assert_eq!(of("unlimited", "9000"), Some((9000, 3072)));
        assert_eq!(of("2000", "9000"), Some((2000, 1024)));
        assert_eq!(of_process("", ""), None);
    }

    #[test]
    fn what_is_available_is_part_of_the_whole() {
        if let (Some(available), Some(total)) = (available(), total()) {
            assert!(available <= total);
        }
    }
}
