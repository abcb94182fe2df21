//! The house rules that must not drift silently, as tables with one check each.
//! It is not a style guide (rustfmt and clippy hold the details) and it parses no Rust: `house/source.rs` tells
//! code from strings and comments, which is enough. Every complaint says where, and what to do.

#[path = "house/source.rs"]
mod source;
#[path = "house/workspace.rs"]
mod workspace;

use std::collections::{BTreeMap, BTreeSet};

use source::Source;

/// (a) Who may know whom, directly, tests and build scripts included. A package without a row is refused.
const ARROWS: &[(&str, &[&str])] = &[
    ("bantam-core", &[]),
    ("bantam-cuda", &["bantam-core", "bantam-cusim", "bantam-model"]),
    ("bantam-model", &["bantam-core"]),
    ("bantam-proto", &[]),
    ("bantam-quantize", &["bantam-core", "bantam-model"]),
    ("bantam-train", &["bantam-core", "bantam-model"]),
    ("bantam-daemon", &["bantam-core", "bantam-cuda", "bantam-model", "bantam-proto", "bantam-train"]),
    (
        "bantam",
        &[
            "bantam-core",
            "bantam-cuda",
            "bantam-cusim",
            "bantam-model",
            "bantam-quantize",
            "bantam-train",
            "bantam-proto",
            "bantam-daemon",
        ],
    ),
    // The leaves: nothing may depend on these.
    (
        "bantam-tests",
        &["bantam-core", "bantam-cuda", "bantam-cusim", "bantam-model", "bantam-quantize", "bantam-train"],
    ),
    ("bantam-cusim", &[]),
    ("bantam-no-std-probe", &["bantam-core"]),
    (
        "bantam-benches",
        &["bantam-core", "bantam-cuda", "bantam-cusim", "bantam-model", "bantam-proto", "bantam-daemon"],
    ),
    ("xtask", &[]),
];

/// (a) Crates that only the named packages may meet, directly or through others.
const KEPT: &[(&str, &[&str])] = &[
    ("tokio", &["bantam-daemon", "bantam-proto", "bantam", "bantam-benches"]),
    ("tonic", &["bantam-daemon", "bantam-proto", "bantam", "bantam-benches"]),
    ("hyper", &["bantam-daemon", "bantam-proto", "bantam", "bantam-benches"]),
    ("axum", &["bantam-daemon", "bantam-proto", "bantam", "bantam-benches"]),
    // Only `bantam pull` asks the network for anything, and a run tells MLflow's server where somebody names one.
    ("ureq", &["bantam", "bantam-train", "bantam-daemon", "bantam-tests", "bantam-benches"]),
];

/// (a) Crates that only the named packages may declare, behind a feature or not.
const DECLARED: &[(&str, &[&str])] = &[("cudarc", &["bantam-cuda"])];

/// (b) Where `unsafe` may stand: kernels, the map of a file, and two tests that cannot do without.
const UNSAFE: &[&str] = &[
    "core/src/cpu.rs",
    "core/src/layouts/",
    "core/src/ops/",
    "cuda/src/driver.rs",
    "model/src/checkpoint/map.rs",
    "tests/house/counting.rs", // a counting global allocator
    "tests/no_std_probe/",     // an entry point without std
];

/// (b) Packages whose roots may say less than `#![forbid(unsafe_code)]`.
const UNSAFE_ROOTS: &[(&str, &[&str])] = &[
    ("bantam-core", &[]),
    ("bantam-cuda", &["#![deny(unsafe_code)]"]),
    ("bantam-no-std-probe", &[]),
    ("bantam-model", &["#![deny(unsafe_code)]", "#![forbid(unsafe_code)]"]),
];

/// (c) Names of model families: `model/src/families.rs` is the one table that knows them.
const FAMILIES: &[&str] = &[
    "bamba",
    "deepseek",
    "falcon",
    "gemma",
    "glm4",
    "gpt2",
    "gpt_oss",
    "gptoss",
    "granite",
    "llama",
    "mamba",
    "mistral",
    "mixtral",
    "neox",
    "olmo",
    "phi3",
    "pythia",
    "qwen",
    "starcoder",
];
const FAMILY_TABLE: &str = "model/src/families.rs";
const FAMILY_SCOPE: &[&str] = &["core/", "model/src/"];
/// (file, word or string) that may name a family elsewhere; each with its reason.
const FAMILY_EXCEPTIONS: &[(&str, &str)] = &[];

/// (d) Instruction sets and layouts, as words inside identifiers and strings (`Avx2Token` holds `avx2`).
const VARIANTS: &[&str] = &["avx", "avx2", "avx512", "vnni", "neon", "sve", "code4", "code8", "trit"];
/// Names that are also plain English: refused only as a whole identifier or string, spelled exactly so.
const VARIANTS_WHOLE: &[&str] = &["Wide", "wide"];
const VARIANT_HOMES: &[&str] =
    &["core/src/cpu.rs", "core/src/layouts/", "core/src/layouts.rs", "core/src/ops/", "core/src/cuda/"];
const VARIANT_SCOPE: &[&str] = &["core/src/", "model/src/", "clients/"];
/// (file, word or string) that may name a layout or an instruction set elsewhere; each with its reason.
const VARIANT_EXCEPTIONS: &[(&str, &str)] = &[];

/// (e) A function fits on a screen, a file is read in one sitting.
const FUNCTION_LINES: usize = 70;
const FILE_LINES: usize = 900;
/// (file, function, lines): longer functions that we live with. Entries only shrink and vanish.
const LONG_FUNCTIONS: &[(&str, &str, usize)] = &[];

/// (e) What a generator wrote is read where it came from: its length and width are nobody's style.
const GENERATED: &[&str] = &["proto/src/generated/"];

/// (f) Macros and attributes that mean "later".
const LATER: &[&str] = &["todo!", "unimplemented!", "dbg!", "#[ignore"];
/// (f) File names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] = &["util", "utils", "common", "helper", "helpers", "manager", "misc", "mod2"];

/// (g) rustfmt breaks at 110; what it cannot break (strings, comments) may be this wide.
const LINE_CHARACTERS: usize = 120;

/// (h) What a clone costs: the carried model, a trained one with goldens, about a megabyte of golden for every family
/// and format, five for adapters, five for the code, of which one is generated (`proto/`, `clients/python`), and two
/// for the texts of kernels.
const REPOSITORY_BYTES: u64 = 76_000_000;

/// One Rust file: its path from the root, its text, the same taken apart.
struct File {
    path: String,
    text: String,
    source: Source,
}

impl File {
    fn new(path: &str, text: &str) -> Self {
        Self { path: path.to_owned(), text: text.to_owned(), source: Source::read(text) }
    }
}

/// Every Rust file of the repository.
fn sources() -> Vec<File> {
    let rust = workspace::files().into_iter().filter(|path| path.ends_with(".rs"));
    rust.map(|path| {
        let text = std::fs::read_to_string(workspace::root().join(&path)).expect("a Rust file is UTF-8");
        File::new(&path, &text)
    })
    .collect()
}

fn is_below(path: &str, places: &[&str]) -> bool {
    places.iter().any(|place| path == *place || (place.ends_with('/') && path.starts_with(place)))
}

/// A file that only `#[cfg(test)] mod …;` includes.
fn is_test_file(path: &str) -> bool {
    path.contains("/tests/") || path.ends_with("/tests.rs") || path.ends_with("_tests.rs")
}

#[track_caller]
fn report(complaints: Vec<String>) {
    assert!(complaints.is_empty(), "{} found:\n{}\n", complaints.len(), complaints.join("\n"));
}

#[test]
fn arrows_point_one_way() {
    let packages = workspace::packages();
    let ours: BTreeSet<&str> = packages
        .values()
        .filter(|package| package.source.is_none())
        .map(|package| package.name.as_str())
        .collect();
    let mut wrong = Vec::new();
    for package in packages.values().filter(|package| package.source.is_none()) {
        let name = &package.name;
        let Some((_, allowed)) = ARROWS.iter().find(|(row, _)| row == name) else {
            wrong.push(format!("Cargo.toml: package {name} has no row: add it to ARROWS in tests/tidy.rs"));
            continue;
        };
        for dependency in package.declared.iter().filter(|dependency| ours.contains(dependency.as_str())) {
            if !allowed.contains(&dependency.as_str()) {
                wrong.push(format!(
                    "{name} depends on {dependency}: move what it needs down, or turn the call round"
                ));
            }
        }
    }
    report(wrong);
}

#[test]
fn outside_crates_stay_in_their_rooms() {
    let packages = workspace::packages();
    let mut wrong = Vec::new();
    for package in packages.values() {
        for (kept, homes) in DECLARED {
            if package.declared.iter().any(|name| name == kept) && !homes.contains(&package.name.as_str()) {
                wrong.push(format!("{} declares {kept}: only {homes:?} may", package.name));
            }
        }
        if package.source.is_some() {
            continue;
        }
        let reached = reached(&packages, &package.id);
        for (kept, homes) in KEPT {
            if reached.contains(*kept) && !homes.contains(&package.name.as_str()) {
                wrong.push(format!(
                    "{} pulls in {kept}: only {homes:?} may; see cargo tree -i {kept}",
                    package.name
                ));
            }
        }
    }
    report(wrong);
}

/// Names of all packages that one package pulls in.
fn reached<'a>(packages: &'a BTreeMap<String, workspace::Package>, from: &'a str) -> BTreeSet<&'a str> {
    let (mut seen, mut open) = (BTreeSet::from([from]), vec![from]);
    while let Some(id) = open.pop() {
        open.extend(packages[id].resolved.iter().map(String::as_str).filter(|next| seen.insert(next)));
    }
    seen.into_iter().map(|id| packages[id].name.as_str()).collect()
}

#[test]
fn unsafe_stands_only_where_it_may() {
    report(misplaced_unsafe(&sources()));
}

fn misplaced_unsafe(files: &[File]) -> Vec<String> {
    let mut wrong = Vec::new();
    for File { path, source, .. } in files {
        if is_below(path, UNSAFE) {
            continue;
        }
        for (line, _) in source.words().filter(|(_, word)| *word == "unsafe") {
            wrong.push(format!(
                "{path}:{line}: `unsafe`: move it behind a safe function in one of {UNSAFE:?}"
            ));
        }
    }
    wrong
}

#[test]
fn crate_roots_forbid_unsafe() {
    let sources = sources();
    let mut wrong = Vec::new();
    for package in workspace::packages().values().filter(|package| package.source.is_none()) {
        let row = UNSAFE_ROOTS.iter().find(|(name, _)| *name == package.name);
        let expected = row.map_or(&["#![forbid(unsafe_code)]"][..], |(_, lines)| lines);
        for (_, path) in package.targets.iter().filter(|(kind, _)| kind == "lib" || kind == "bin") {
            let Some(File { source, .. }) = sources.iter().find(|file| file.path == *path) else {
                continue;
            };
            let says = expected.iter().any(|attribute| source.code.lines().any(|line| line == *attribute));
            if !says && !expected.is_empty() {
                wrong.push(format!("{path}:1: add `{}` below the file's `//!`", expected[0]));
            }
        }
    }
    report(wrong);
}

#[test]
fn families_are_named_in_their_table_only() {
    report(misplaced_families(&sources()));
}

fn misplaced_families(files: &[File]) -> Vec<String> {
    let holds = |word: &str| {
        let plain = word.to_lowercase().replace(['-', ' '], "_");
        FAMILIES.iter().any(|family| plain.contains(family))
    };
    let mut wrong = Vec::new();
    for File { path, source, .. } in files {
        if !is_below(path, FAMILY_SCOPE) || path == FAMILY_TABLE || is_test_file(path) {
            continue;
        }
        for (line, name) in outside_tests(source).filter(|(_, name)| holds(name)) {
            if !FAMILY_EXCEPTIONS.contains(&(path, name)) {
                wrong.push(format!(
                    "{path}:{line}: `{name}` names a model family: make it a field of the table in {FAMILY_TABLE}"
                ));
            }
        }
    }
    wrong
}

/// Identifiers and string literals with their lines, test code left out.
fn outside_tests(source: &Source) -> impl Iterator<Item = (usize, &str)> {
    let strings = source.strings.iter().map(|(line, text)| (*line, text.as_str()));
    source.words().chain(strings).filter(|(line, _)| !source.is_test(*line))
}

#[test]
fn layouts_and_instruction_sets_are_named_at_home() {
    report(misplaced_variants(&sources()));
}

fn misplaced_variants(files: &[File]) -> Vec<String> {
    let mut wrong = Vec::new();
    for File { path, source, .. } in files {
        if !is_below(path, VARIANT_SCOPE) || is_below(path, VARIANT_HOMES) || is_test_file(path) {
            continue;
        }
        for (line, name) in outside_tests(source).filter(|(_, name)| names_a_variant(name)) {
            if !VARIANT_EXCEPTIONS.contains(&(path, name)) {
                wrong.push(format!(
                    "{path}:{line}: `{name}` names a layout or an instruction set: ask `LAYOUTS` or `Cpu` instead, \
                     or add a row to VARIANT_EXCEPTIONS"
                ));
            }
        }
    }
    wrong
}

fn names_a_variant(name: &str) -> bool {
    VARIANTS_WHOLE.contains(&name) || parts(name).iter().any(|part| VARIANTS.contains(&part.as_str()))
}

/// `Avx2Token`, `has_avx2`, `avx2-fma` -> their parts in lower case.
fn parts(name: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut previous = ' ';
    for c in name.chars() {
        let begins = c.is_uppercase() && (previous.is_lowercase() || previous.is_numeric());
        if !c.is_alphanumeric() || begins {
            parts.push(String::new());
        }
        if c.is_alphanumeric()
            && let Some(part) = parts.last_mut()
        {
            part.extend(c.to_lowercase());
        }
        previous = c;
    }
    parts
}

#[test]
fn functions_and_files_are_short() {
    report(too_long(&sources()));
}

fn too_long(files: &[File]) -> Vec<String> {
    let mut wrong = Vec::new();
    let mut met: BTreeSet<&(&str, &str, usize)> = BTreeSet::new();
    for File { path, text, source } in files.iter().filter(|file| !is_below(&file.path, GENERATED)) {
        let lines = text.lines().count();
        if lines > FILE_LINES {
            wrong.push(format!(
                "{path}:1: {lines} lines of {FILE_LINES}: which two things has this file become?"
            ));
        }
        for function in source.functions() {
            let name = function.name.as_str();
            let entry = LONG_FUNCTIONS.iter().find(|(file, entry, _)| *file == *path && *entry == name);
            let recorded = entry.map_or(FUNCTION_LINES, |(_, _, lines)| *lines);
            met.extend(entry.filter(|_| function.lines == recorded && recorded > FUNCTION_LINES));
            if function.lines > recorded {
                let (line, lines) = (function.line, function.lines);
                wrong.push(format!("{path}:{line}: fn {name} has {lines} lines of {recorded}: split it"));
            }
        }
    }
    for entry in LONG_FUNCTIONS.iter().filter(|entry| !met.contains(entry)) {
        wrong.push(format!("tests/tidy.rs: {entry:?} is shorter now or gone: lower or remove the entry"));
    }
    wrong
}

#[test]
fn nothing_waits_for_later() {
    report(left_for_later(&sources()));
}

fn left_for_later(files: &[File]) -> Vec<String> {
    let mut wrong = Vec::new();
    for File { path, source, .. } in files {
        for (number, line) in source.code.lines().enumerate() {
            for word in LATER.iter().filter(|word| line.contains(*word)) {
                let line = number + 1;
                wrong.push(format!("{path}:{line}: `{word}`: do it now, or return an error that says so"));
            }
        }
    }
    wrong
}

#[test]
fn files_are_named_after_nouns() {
    report(workspace::files().iter().filter_map(|path| empty_name(path)).collect());
}

fn empty_name(path: &str) -> Option<String> {
    let stems = path.split('/').map(|part| part.split('.').next().unwrap_or_default());
    let is_empty = stems.into_iter().any(|stem| EMPTY_NAMES.contains(&stem));
    is_empty.then(|| format!("{path}:1: rename it after the noun that it defines"))
}

#[test]
fn rust_files_open_with_what_they_are_and_keep_to_the_margin() {
    report(unopened_and_wide(&sources()));
}

fn unopened_and_wide(files: &[File]) -> Vec<String> {
    let mut wrong = Vec::new();
    for File { path, text, .. } in files {
        if !text.starts_with("//! ") {
            wrong.push(format!("{path}:1: begin with `//! ` and say what this file is, and what it is not"));
        }
        for (number, line) in text.lines().enumerate().filter(|_| !is_below(path, GENERATED)) {
            let width = line.chars().count();
            // The sentence of an error stands in one attribute; broken up it could not be searched for.
            let line_start = line.trim_start();
            let is_sentence = line_start.starts_with("#[error(") || line_start.starts_with('"');
            if width > LINE_CHARACTERS && !is_sentence {
                wrong.push(format!(
                    "{path}:{}: {width} characters of {LINE_CHARACTERS}: break the line",
                    number + 1
                ));
            }
        }
    }
    wrong
}

#[test]
fn committed_files_name_no_machine_and_stay_small() {
    // Put together from halves, or this file would find itself.
    let everywhere = [concat!("/wo", "rk/"), concat!("/ro", "ot/"), concat!("/ho", "me/")];
    let tests_only = concat!("/tm", "p/");
    let mut wrong = Vec::new();
    let mut bytes_in_all = 0;
    for path in workspace::files() {
        let bytes = std::fs::read(workspace::root().join(&path)).expect("a committed file can be read");
        bytes_in_all += bytes.len() as u64;
        let Ok(text) = String::from_utf8(bytes) else {
            continue;
        };
        let in_tests = is_below(&path, &["tests/", "xtask/"]) || is_test_file(&path);
        for (number, line) in text.lines().enumerate() {
            let refused = everywhere.iter().chain((!in_tests).then_some(&tests_only));
            for place in refused.filter(|place| is_absolute_in(line, place)) {
                wrong.push(format!(
                    "{path}:{}: `{place}` exists on one machine only: take a path",
                    number + 1
                ));
            }
        }
    }
    if bytes_in_all > REPOSITORY_BYTES {
        wrong.push(format!(
            "{bytes_in_all} bytes are committed, of {REPOSITORY_BYTES}: shrink the newest goldens"
        ));
    }
    report(wrong);
}

/// Whether the path begins at `/`: `docs/tmp/` and `https://host/tmp/` go on from something.
fn is_absolute_in(line: &str, place: &str) -> bool {
    line.match_indices(place).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        !before.is_some_and(|c| c.is_alphanumeric() || "._-/~}>)*".contains(c))
    })
}

#[test]
fn the_reader_tells_code_from_strings_and_comments() {
    let text = concat!(
        "//! unsafe\n",
        "fn a<'x>(q: char) -> &'x str {\n",
        "    let _ = ('\"', '\\'', b'\\\\', q); /* unsafe /* unsafe */ \" */\n",
        "    let r = r#\"unsafe \" fn b() {\"#;\n",
        "    \"unsafe \\\" { é\"\n",
        "}\n",
        "#[cfg(test)]\n",
        "#[allow(dead_code)]\n",
        "mod tests {\n",
        "    fn c() { llama(); }\n",
        "}\n",
        "type F = fn(usize); fn d(x: [u8; 2]);\n",
    );
    let source = Source::read(text);
    assert_eq!(source.code.lines().count(), text.lines().count());
    assert!(source.words().all(|(_, word)| word != "unsafe"), "{}", source.code);
    assert_eq!(source.strings.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [4, 5]);
    let functions: Vec<_> = source.functions().into_iter().map(|f| (f.name, f.line, f.lines)).collect();
    assert_eq!(functions, [("a".to_owned(), 2, 5), ("c".to_owned(), 10, 1)]);
    let tests: Vec<usize> = (1..=12).filter(|line| source.is_test(*line)).collect();
    assert_eq!(tests, [7, 8, 9, 10, 11]);
    assert!(names_a_variant("Avx2Token") && names_a_variant("has_avx512_vnni") && names_a_variant("Wide"));
    assert!(!names_a_variant("wide_rows") && !names_a_variant("WIDE") && !names_a_variant("attribute"));
}

/// A lock that never closes proves nothing: each rule refuses what is planted here, and lets its neighbour pass.
#[test]
fn every_rule_refuses_what_is_planted() {
    type Rule = fn(&[File]) -> Vec<String>;
    let long = format!("fn long() {{\n{}}}\n", "    step();\n".repeat(FUNCTION_LINES));
    let thick = format!("//! x\n{}", "\n".repeat(FILE_LINES));
    let wide = format!("//! x\n// {}\n", "é".repeat(LINE_CHARACTERS));
    let in_tests = "#[cfg(test)]\nmod tests {\n    fn llama() { avx2(\"qwen\") }\n}\n";
    let planted: &[(Rule, &str, &str, usize)] = &[
        (misplaced_unsafe, "model/src/plan.rs", "fn f() { unsafe { g() } }", 1),
        (misplaced_unsafe, "core/src/ops/add.rs", "fn f() { unsafe { g() } }", 0),
        (misplaced_unsafe, "model/src/plan.rs", "// unsafe\nfn f() { g(\"unsafe\") }", 0),
        (misplaced_families, "model/src/spec.rs", "fn f() { NeoxRope::g(\"Qwen2\") }", 2),
        (misplaced_families, "core/src/ops/rope.rs", "/// as in llama\nfn f() {}", 0),
        (misplaced_families, FAMILY_TABLE, "const A: &str = \"llama\";", 0),
        (misplaced_families, "model/src/spec.rs", in_tests, 0),
        (misplaced_variants, "model/src/plan.rs", "fn has_avx2() { Code8::g(\"neon\", Wide) }", 4),
        (misplaced_variants, "core/src/cpu.rs", "fn has_avx2() {}", 0),
        (misplaced_variants, "model/src/plan.rs", in_tests, 0),
        (too_long, "model/src/plan.rs", &long, 1),
        (too_long, "model/src/plan.rs", &thick, 1),
        (too_long, "model/src/plan.rs", in_tests, 0),
        (left_for_later, "model/src/plan.rs", "fn f() { todo!() }\n#[ignore]\nfn g() {}", 2),
        (left_for_later, "model/src/plan.rs", "// todo!\n", 0),
        (unopened_and_wide, "model/src/plan.rs", "fn f() {}", 1),
        (unopened_and_wide, "model/src/plan.rs", &wide, 1),
    ];
    for (rule, path, text, expected) in planted {
        let complaints = rule(&[File::new(path, text)]);
        assert_eq!(complaints.len(), *expected, "{path}: {text}\n{complaints:?}");
    }
}

#[test]
fn names_and_places_are_told_apart() {
    assert!(empty_name("model/src/utils.rs").is_some() && empty_name("core/helpers/mod.rs").is_some());
    assert!(empty_name("model/src/plan.rs").is_none());
    let (absolute, relative) = (concat!("= \"/ho", "me/x\""), concat!("see docs/ho", "me/x"));
    assert!(
        is_absolute_in(absolute, concat!("/ho", "me/")) && !is_absolute_in(relative, concat!("/ho", "me/"))
    );
}
