//! What may enter the tree: the core's whole list of dependencies, and the licence and source of every package.
//! It is not a vulnerability check (that needs a network and a date), and it does not look at our own packages'
//! arrows; `tests/tidy.rs` does.

#[path = "house/workspace.rs"]
mod workspace;

use std::collections::BTreeMap;

/// All that `bantam-core` pulls in at run time or in its build. To add one: show in the commit message that it
/// is no_std, uses no alloc, and what writing the needed lines ourselves would cost.
const CORE: &[&str] = &[
    "bantam-core",
    "bytemuck",
    "byteorder",          // heapless -> hash32
    "cfg-if",             // half
    "half",               // f16 and bf16 conversions
    "hash32",             // heapless
    "heapless",           // vectors of fixed capacity
    "libm",               // sqrt, exp, sin, cos without std
    "proc-macro2",        // build only: zerocopy-derive
    "quote",              // build only: zerocopy-derive
    "stable_deref_trait", // heapless
    "syn",                // build only: zerocopy-derive
    "unicode-ident",      // build only: zerocopy-derive
    "zerocopy",           // half
    "zerocopy-derive",    // build only: zerocopy
];

/// Types of these cross our packages' borders, or two copies would be two truths about one file format.
const SINGLE: &[&str] = &[
    "anyhow",
    "bytemuck",
    "clap",
    "half",
    "heapless",
    "libm",
    "memmap2",
    "minijinja",
    "safetensors",
    "serde",
    "serde_json",
    "thiserror",
    "tokenizers",
    "tokio",
];

#[test]
fn core_depends_on_nothing_else() {
    let found = workspace::tree("bantam-core");
    let new: Vec<_> = found.iter().filter(|name| !CORE.contains(&name.as_str())).collect();
    let gone: Vec<_> = CORE.iter().filter(|name| !found.iter().any(|found| found == *name)).collect();
    assert!(new.is_empty(), "bantam-core now pulls in {new:?}: drop them, or add them to CORE with a reason");
    assert!(gone.is_empty(), "bantam-core no longer pulls in {gone:?}: take them out of CORE");
}

#[test]
fn every_licence_and_source_is_allowed() {
    let deny = std::fs::read_to_string(workspace::root().join("deny.toml")).expect("deny.toml is there");
    let licences = list(&deny, "[licenses]", "allow");
    let registries = list(&deny, "[sources]", "allow-registry");
    let banned = list(&deny, "[bans]", "deny");
    let mut wrong = Vec::new();
    for package in workspace::packages().values() {
        let name = format!("{} {}", package.name, package.version);
        let Some(source) = &package.source else { continue };
        if !registries.iter().any(|registry| source == &format!("registry+{registry}")) {
            wrong.push(format!("{name}: comes from {source}; only [sources] of deny.toml may be used"));
        }
        if banned.contains(&package.name) {
            wrong.push(format!("{name}: is refused by [bans] of deny.toml, which says what to use instead"));
        }
        if !allowed(&package.license, &licences) {
            let licence = &package.license;
            wrong.push(format!("{name}: licence \"{licence}\" is not in [licenses] of deny.toml"));
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}

#[test]
fn key_crates_have_one_version() {
    let mut versions: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in workspace::packages().into_values() {
        versions.entry(package.name).or_default().push(package.version);
    }
    let twice: Vec<_> = SINGLE
        .iter()
        .filter_map(|name| versions.get_key_value(*name))
        .filter(|(_, versions)| versions.len() > 1)
        .collect();
    assert!(
        twice.is_empty(),
        "one version each, please (cargo tree -i NAME@VERSION shows who asks): {twice:?}"
    );
}

/// Reads `key = [` in a section of deny.toml: the first quoted string of each following line, up to `]`.
fn list(toml: &str, section: &str, key: &str) -> Vec<String> {
    let found: Vec<String> = toml
        .lines()
        .skip_while(|line| *line != section)
        .skip_while(|line| *line != format!("{key} = ["))
        .skip(1)
        .take_while(|line| !line.starts_with(']'))
        .filter_map(|line| line.split('"').nth(1))
        .map(str::to_owned)
        .collect();
    assert!(!found.is_empty(), "deny.toml: no list `{key}` with one entry per line below {section}");
    found
}

/// Whether an SPDX expression can be met from the list; one that cannot be read cannot be met. `/` is the old
/// spelling of OR.
fn allowed(expression: &str, licences: &[String]) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    any_of(&mut rest, licences) == Some(true) && rest.is_empty()
}

fn any_of(rest: &mut &[&str], licences: &[String]) -> Option<bool> {
    let mut met = all_of(rest, licences)?;
    while let ["OR", tail @ ..] = *rest {
        *rest = tail;
        // No short circuit: the words of the other half must be taken too.
        met |= all_of(rest, licences)?;
    }
    Some(met)
}

fn all_of(rest: &mut &[&str], licences: &[String]) -> Option<bool> {
    let mut met = one(rest, licences)?;
    while let ["AND", tail @ ..] = *rest {
        *rest = tail;
        met &= one(rest, licences)?;
    }
    Some(met)
}

fn one(rest: &mut &[&str], licences: &[String]) -> Option<bool> {
    let (licence, tail) = match *rest {
        ["(", tail @ ..] => {
            *rest = tail;
            let met = any_of(rest, licences)?;
            *rest = rest.strip_prefix(&[")"])?;
            return Some(met);
        }
        [licence, "WITH", exception, tail @ ..] => (format!("{licence} WITH {exception}"), tail),
        [licence, tail @ ..] => ((*licence).to_owned(), tail),
        [] => return None,
    };
    *rest = tail;
    Some(licences.contains(&licence))
}

#[test]
fn licence_expressions_are_read() {
    let list: Vec<String> =
        ["MIT", "Apache-2.0 WITH LLVM-exception", "Unicode-3.0"].map(str::to_owned).into();
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("MIT OR GPL-3.0", true),
        ("GPL-3.0/MIT", true),
        ("MIT AND GPL-3.0", false),
        ("(MIT OR Apache-2.0) AND Unicode-3.0", true),
        ("(MIT OR Apache-2.0) AND OpenSSL", false),
        ("Apache-2.0 WITH LLVM-exception", true),
        ("Apache-2.0", false),
        ("MIT OR (GPL-3.0", false),
        ("", false),
    ] {
        assert_eq!(allowed(expression, &list), expected, "{expression}");
    }
}
