//! Which files of a repository are wanted: patterns as huggingface_hub has them, and what nobody wants twice.

/// Endings of weights that stand beside safetensors for other programs; most are the same numbers once more, and
/// none are read by this one.
const FOREIGN: [&str; 11] =
    ["bin", "pt", "pth", "ckpt", "pkl", "onnx", "onnx_data", "msgpack", "h5", "ot", "tflite"];
/// Folders in which publishers keep the same weights in their own form.
const ORIGINALS: [&str; 2] = ["original/", "metal/"];
const SAFETENSORS: &str = "safetensors";

/// What the user wants.
#[derive(Debug, Default)]
pub(super) struct Choice {
    pub(super) include: Vec<String>,
    pub(super) exclude: Vec<String>,
}

/// What becomes of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Wanted,
    /// By a pattern.
    Excluded,
    /// Without a word of the user: weights that are there as safetensors.
    Duplicate,
}

impl Choice {
    /// The fate of every path, in their order.
    pub(super) fn judge(&self, paths: &[&str]) -> Vec<Fate> {
        let has_safetensors = paths.iter().any(|path| !path.contains('/') && ends(path, &[SAFETENSORS]));
        let has_plain = paths
            .iter()
            .any(|path| !path.contains('/') && ends(path, &[SAFETENSORS]) && !is_consolidated(path));
        let any = |patterns: &[String], path: &str| patterns.iter().any(|pattern| matches(pattern, path));
        let fate = |path: &&str| {
            let is_twice = (has_safetensors && is_foreign(path)) || (has_plain && is_consolidated(path));
            match self.include.as_slice() {
                _ if any(&self.exclude, path) => Fate::Excluded,
                [] if is_twice => Fate::Duplicate,
                [] => Fate::Wanted,
                include if any(include, path) => Fate::Wanted,
                _ => Fate::Excluded,
            }
        };
        paths.iter().map(fate).collect()
    }
}

fn ends(path: &str, endings: &[&str]) -> bool {
    path.rsplit_once('.').is_some_and(|(_, end)| endings.iter().any(|known| end.eq_ignore_ascii_case(known)))
}

fn is_foreign(path: &str) -> bool {
    let is_original = ORIGINALS.iter().any(|folder| path.starts_with(folder));
    ends(path, &FOREIGN) || (is_original && ends(path, &[SAFETENSORS]))
}

/// Mistral's name for its own form, which stands beside transformers'.
fn is_consolidated(path: &str) -> bool {
    path.starts_with("consolidated") && ends(path, &[SAFETENSORS])
}

/// Whether a path fits a shell pattern as Python's fnmatch has them: `*` takes slashes too, and a folder with a slash
/// at its end stands for all that is in it.
fn matches(pattern: &str, path: &str) -> bool {
    let mut pattern: Vec<char> = pattern.chars().collect();
    if pattern.last() == Some(&'/') {
        pattern.push('*');
    }
    let text: Vec<char> = path.chars().collect();
    let (mut p, mut t) = (0, 0);
    // The last star, and where the text after it was tried from. One such place is enough: an earlier star could only
    // have taken what this one takes as well.
    let mut star = None;
    while t < text.len() {
        if pattern.get(p) == Some(&'*') {
            star = Some((p, t));
            p += 1;
        } else if let Some(taken) = one(&pattern[p..], text[t]) {
            (p, t) = (p + taken, t + 1);
        } else if let Some((at, from)) = star {
            star = Some((at, from + 1));
            (p, t) = (at + 1, from + 1);
        } else {
            return false;
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

/// How much of a pattern stands for this one character, if its beginning does.
fn one(pattern: &[char], c: char) -> Option<usize> {
    match *pattern.first()? {
        '?' => Some(1),
        '[' => match class(pattern) {
            Some((set, length)) => {
                let (negated, set) = match set.first() {
                    Some('!') => (true, &set[1..]),
                    _ => (false, set),
                };
                (in_class(set, c) != negated).then_some(length)
            }
            None => (c == '[').then_some(1),
        },
        plain => (plain == c).then_some(1),
    }
}

/// What stands between brackets, and how long it is with them. A `]` that comes first is one of the set.
fn class(pattern: &[char]) -> Option<(&[char], usize)> {
    let first = if pattern.get(1) == Some(&'!') { 3 } else { 2 };
    let end = first + pattern.get(first..)?.iter().position(|c| *c == ']')?;
    Some((&pattern[1..end], end + 1))
}

fn in_class(mut set: &[char], c: char) -> bool {
    while let Some((&low, rest)) = set.split_first() {
        set = match rest {
            ['-', high, rest @ ..] => {
                if (low..=*high).contains(&c) {
                    return true;
                }
                rest
            }
            _ if low == c => return true,
            _ => rest,
        };
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_those_of_fnmatch() {
        for (pattern, path, expected) in [
            ("*.json", "config.json", true),
            ("*.json", "a/b.json", true),
            ("*.json", "a.jsonl", false),
            ("a/", "a/b/c", true),
            ("a/", "ab", false),
            ("*", "", true),
            ("?", "", false),
            ("model-0000[12]-*", "model-00002-of-3", true),
            ("model-0000[!12]-*", "model-00002-of-3", false),
            ("[a-c]x", "bx", true),
            ("[]]", "]", true),
            ("[x", "[x", true),
            ("*Q4_K*.gguf", "m-Q4_K_M.gguf", true),
            ("*a*a*a*a*b", &"a".repeat(1000), false),
            ("Config.json", "config.json", false),
        ] {
            assert_eq!(matches(pattern, path), expected, "{pattern} {path}");
        }
    }

    #[track_caller]
    fn check(include: &[&str], exclude: &[&str], paths: &[&str], wanted: &[&str]) {
        let owned = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect();
        let fates = Choice { include: owned(include), exclude: owned(exclude) }.judge(paths);
        let found = paths.iter().zip(fates).filter(|(_, fate)| *fate == Fate::Wanted);
        assert_eq!(found.map(|(path, _)| *path).collect::<Vec<_>>(), wanted);
    }

    #[test]
    fn weights_come_once() {
        let both =
            ["config.json", "model.safetensors", "pytorch_model.bin", "onnx/model.onnx", "tf_model.h5"];
        check(&[], &[], &both, &["config.json", "model.safetensors"]);
        check(&["*"], &[], &both, &both);
        check(&["*"], &["*.h5", "onnx/"], &both, &both[..3]);
        check(&[], &["config.*"], &both, &["model.safetensors"]);
        let old = ["config.json", "pytorch_model.bin"];
        check(&[], &[], &old, &old);
        let published = [
            "metal/model.bin",
            "model-00000-of-00002.safetensors",
            "original/config.json",
            "original/model.safetensors",
        ];
        check(&[], &[], &published, &[published[1], published[2]]);
        let mistral = ["consolidated.safetensors", "model.safetensors"];
        check(&[], &[], &mistral, &mistral[1..]);
        check(&[], &[], &mistral[..1], &mistral[..1]);
        let diffusers = ["unet/a.safetensors", "unet/a.bin"];
        check(&[], &[], &diffusers, &diffusers);
    }
}
