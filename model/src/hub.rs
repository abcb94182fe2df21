//! Where huggingface_hub keeps what it fetched, by its own variables; what a variable says is asked of the caller.

use std::ffi::OsString;
use std::path::PathBuf;

/// The folder `hub` of the cache; nothing where no variable says where that is.
pub fn cache(variable: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let folder = |name| path(variable, name);
    folder("HF_HUB_CACHE")
        .or_else(|| folder("HUGGINGFACE_HUB_CACHE"))
        .or_else(|| Some(home(variable)?.join("hub")))
}

/// `HF_HOME`.
pub fn home(variable: &dyn Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let folder = |name| path(variable, name);
    folder("HF_HOME")
        .or_else(|| Some(folder("XDG_CACHE_HOME")?.join("huggingface")))
        .or_else(|| Some(folder("HOME")?.join(".cache/huggingface")))
}

/// A folder or file that a variable names; `~` is the home.
pub fn path(variable: &dyn Fn(&str) -> Option<OsString>, name: &str) -> Option<PathBuf> {
    let given = PathBuf::from(variable(name).filter(|value| !value.is_empty())?);
    match given.strip_prefix("~") {
        Ok(rest) => Some(PathBuf::from(variable("HOME")?).join(rest)),
        Err(_) => Some(given),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[test]
    fn the_cache_lies_where_huggingface_hub_has_it() {
        for (pairs, expected) in [
            (&[("HOME", "/h")][..], Some("/h/.cache/huggingface/hub")),
            (&[("HOME", "/h"), ("XDG_CACHE_HOME", "/x")], Some("/x/huggingface/hub")),
            (&[("HOME", "/h"), ("HF_HOME", "~/models")], Some("/h/models/hub")),
            (&[("HF_HOME", "/a"), ("HF_HUB_CACHE", "/b")], Some("/b")),
            (&[("HF_HOME", "/a"), ("HUGGINGFACE_HUB_CACHE", "/c")], Some("/c")),
            (&[("HF_HOME", ""), ("HOME", "/h")], Some("/h/.cache/huggingface/hub")),
            (&[], None),
        ] {
            let variable = |name: &str| {
                pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| OsString::from(value))
            };
            assert_eq!(cache(&variable).as_deref(), expected.map(Path::new), "{pairs:?}");
        }
    }
}
