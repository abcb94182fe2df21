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

/// The three regions of an arena.
pub fn arena(weights: usize, cache: usize, work: usize) -> io::Result<Arena<MmapMut>> {
    Ok(Arena::new(region(weights)?, region(cache)?, region(work)?))
}

/// Memory that the system could give now without swapping, in bytes; `None` where it cannot be told. A container's
/// limit counts.
pub fn available() -> Option<u64> {
    let free = meminfo("MemAvailable:")?;
    Some(limit_and_use().map_or(free, |(limit, used)| free.min(limit.saturating_sub(used))))
}

/// All memory of the machine, in bytes; `None` where it cannot be told.
pub fn total() -> Option<u64> {
    meminfo("MemTotal:")
}

/// What this process and those beside it may take at most, where that is less than all memory: the limit of a
/// container or service.
pub fn limit() -> Option<u64> {
    limit_and_use().map(|(limit, _)| limit)
}

fn meminfo(key: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.saturating_mul(1024))
}

fn limit_and_use() -> Option<(u64, u64)> {
    let groups = std::fs::read_to_string("/proc/self/cgroup").ok()?;
    let tightest = tightest(&groups, Path::new("/sys/fs/cgroup"))?;
    // No limit is spelled as one that is larger than any machine.
    (tightest.0 < total()?).then_some(tightest)
}

/// The control group with the least room, of all that hold this process: its limit, and what is used of it beside
/// files that can be dropped.
fn tightest(groups: &str, root: &Path) -> Option<(u64, u64)> {
    let number = |path: &Path| std::fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let droppable = |folder: &Path, key: &str| {
        let text = std::fs::read_to_string(folder.join("memory.stat")).ok()?;
        text.lines().find_map(|line| line.strip_prefix(key)?.trim().parse::<u64>().ok())
    };
    let mut found: Option<(u64, u64)> = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (fields.next(), fields.next()) else {
            continue;
        };
        let (root, names) = match controllers {
            "" => (root.to_owned(), ["memory.max", "memory.current", "inactive_file "]),
            "memory" => (
                root.join("memory"),
                ["memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file "],
            ),
            _ => continue,
        };
        // Inside a container the path may be that of the host, and then only the root is there.
        for folder in Path::new(path.trim_start_matches('/')).ancestors().map(|group| root.join(group)) {
            let limit = number(&folder.join(names[0]));
            let used = number(&folder.join(names[1]));
            let (Some(limit), Some(used)) = (limit, used) else { continue };
            let used = used.saturating_sub(droppable(&folder, names[2]).unwrap_or(0));
            let room = |(limit, used): (u64, u64)| limit.saturating_sub(used);
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
        write("a", &[("memory.stat", "anon 1\ninactive_file 100\n")]);
        assert_eq!(tightest("0::/a/b\n", &root), Some((1000, 200)));
        assert_eq!(tightest("1:cpu:/a\nnonsense\n", &root), None);
        write("memory/c", &[("memory.limit_in_bytes", "500\n"), ("memory.usage_in_bytes", "10\n")]);
        assert_eq!(tightest("0::/a/b\n4:memory:/c/d\n", &root), Some((500, 10)));
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn what_is_available_is_part_of_the_whole() {
        if let (Some(available), Some(total)) = (available(), total()) {
            assert!(available <= total);
        }
    }
}
