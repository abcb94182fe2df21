//! What a name in a request means: the carried model, a name in one of the model folders, a path, or a handle. The same
//! files are the same model, by whatever name they come.

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use bantam_model::adapter;

use super::opened::{Opened, Unusable};
use crate::doors::Door;

/// Longer names are no names: Linux's own bound for a path.
const NAME_BYTES_MAX: usize = 4096;
/// Models that are listed of one folder.
const LISTED_MAX: usize = 1000;
/// What a handle begins with; no name does.
const HANDLE: char = '@';

/// Why a name is not followed.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum NotFound {
    /// It is none.
    #[error("expected a name of at most {NAME_BYTES_MAX} bytes without '..', found {found}; {LOOK}")]
    Malformed {
        /// What is wrong with it.
        found: &'static str,
    },
    /// There is nothing by it.
    #[error("there is no model {name:?}; {LOOK}")]
    Unknown {
        /// As it was asked for, cut short.
        name: String,
    },
    /// It leads out of the folder by a link.
    #[error(
        "the model {name:?} lies outside of its folder, by a link; move it there, or add its folder to models.folders"
    )]
    Outside {
        /// As it was asked for, cut short.
        name: String,
    },
    /// There is no adapter by it.
    #[error(
        "there is no adapter {name:?}: expected the name of a folder with adapter_config.json in one of models.folders, \
         not by a link out of it, or by the unix socket its absolute path"
    )]
    Adapter {
        /// As it was asked for, cut short.
        name: String,
    },
    /// Paths belong to the user whose files these are.
    #[error(
        "expected a name of one of the model folders, found a path: paths are for the unix socket alone; {LOOK}"
    )]
    PathFromAfar,
}

const LOOK: &str = "ModelService.List tells all names";

/// Where a model's files are.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum Place {
    /// In the program.
    Carried,
    /// On the disk, without links.
    Disk(PathBuf),
}

/// A model that the daemon has heard of. There is one for every place.
#[derive(Debug)]
pub(crate) struct Known {
    number: u64,
    place: Place,
    /// In one of the model folders; nothing for what was named by its path.
    name: OnceLock<String>,
    /// What was read of it, while somebody uses that.
    opened: Mutex<Weak<Opened>>,
}

impl Known {
    fn new(number: u64, place: Place) -> Self {
        Known { number, place, name: OnceLock::new(), opened: Mutex::default() }
    }

    /// Its number among all.
    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// What clients call it by while the daemon runs.
    pub(crate) fn handle(&self) -> String {
        format!("{HANDLE}{}", self.number)
    }

    /// Its name in a model folder, or else its path; empty for the carried one.
    pub(crate) fn name(&self) -> String {
        match (&self.place, self.name.get()) {
            (_, Some(name)) => name.clone(),
            (Place::Carried, None) => String::new(),
            (Place::Disk(path), None) => path.display().to_string(),
        }
    }

    /// For log lines and figures: never empty.
    pub(crate) fn label(&self) -> String {
        match self.place {
            Place::Carried => "carried".to_owned(),
            Place::Disk(_) => self.name(),
        }
    }

    /// Where it lies on the disk.
    pub(crate) fn path(&self) -> Option<&Path> {
        match &self.place {
            Place::Carried => None,
            Place::Disk(path) => Some(path),
        }
    }

    /// Whether somebody who comes by this door may know of it.
    pub(crate) fn is_seen_by(&self, door: Door) -> bool {
        door == Door::Unix || self.place == Place::Carried || self.name.get().is_some()
    }

    /// What it is, from its small files and headers: from memory while somebody uses it. Reads the disk.
    pub(crate) fn open(&self) -> Result<Arc<Opened>, Unusable> {
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(opened) = opened.upgrade() {
            return Ok(opened);
        }
        let fresh = Arc::new(Opened::open(self.path())?);
        *opened = Arc::downgrade(&fresh);
        Ok(fresh)
    }
}

/// All models that were heard of, and the folders where others may be.
#[derive(Debug)]
pub(crate) struct Catalog {
    /// As the settings name them.
    folders: Vec<PathBuf>,
    known: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    by_number: Vec<Arc<Known>>,
    by_place: HashMap<Place, Arc<Known>>,
    strangers: u64,
}

impl Table {
    fn of(&mut self, place: Place) -> Arc<Known> {
        if let Some(known) = self.by_place.get(&place) {
            return known.clone();
        }
        let known = Arc::new(Known::new(self.by_number.len() as u64, place.clone()));
        self.by_number.push(known.clone());
        self.by_place.insert(place, known.clone());
        known
    }

    /// What is no model as far as one can see: whoever opens it says why, and it is not remembered.
    fn stranger(&mut self, real: PathBuf) -> Arc<Known> {
        self.strangers += 1;
        Arc::new(Known::new(u64::MAX - self.strangers, Place::Disk(real)))
    }
}

impl Catalog {
    /// The carried model, and what lies in these folders.
    pub(crate) fn new(folders: &[PathBuf]) -> Self {
        let mut table = Table::default();
        table.of(Place::Carried);
        Catalog { folders: folders.to_vec(), known: Mutex::new(table) }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The model of a request that came by this door. Asks the disk.
    pub(crate) fn find(&self, model: &str, door: Door) -> Result<Arc<Known>, NotFound> {
        if model.is_empty() {
            return Ok(self.lock().of(Place::Carried));
        }
        check(model)?;
        let unknown = || NotFound::Unknown { name: clipped(model) };
        if let Some(number) = model.strip_prefix(HANDLE) {
            let number: usize = number.parse().map_err(|_| unknown())?;
            let known = self.lock().by_number.get(number).cloned();
            return known.filter(|known| known.is_seen_by(door)).ok_or_else(unknown);
        }
        let path = Path::new(model);
        if path.is_absolute() {
            if door != Door::Unix {
                return Err(NotFound::PathFromAfar);
            }
            let real = path.canonicalize().map_err(|_| unknown())?;
            let is_one = is_model(&real) || is_model_by_path(&real);
            let mut table = self.lock();
            return Ok(if is_one { table.of(Place::Disk(real)) } else { table.stranger(real) });
        }
        for folder in &self.folders {
            let Ok(folder) = folder.canonicalize() else { continue };
            let Ok(real) = folder.join(path).canonicalize() else { continue };
            let Ok(name) = real.strip_prefix(&folder).map(Path::to_owned) else {
                return Err(NotFound::Outside { name: clipped(model) });
            };
            // The folder itself is no model in it: its name would be empty.
            if name.file_name().is_some() && is_model(&real) {
                return Ok(self.named(real, &name));
            }
        }
        Err(unknown())
    }

    /// The folder of the adapter of a request that came by this door. Asks the disk.
    pub(crate) fn adapter(&self, name: &str, door: Door) -> Result<PathBuf, NotFound> {
        check(name)?;
        let unknown = || NotFound::Adapter { name: clipped(name) };
        let path = Path::new(name);
        if path.is_absolute() {
            return match door {
                Door::Unix => path.canonicalize().map_err(|_| unknown()),
                _ => Err(NotFound::PathFromAfar),
            };
        }
        let within = |folder: &PathBuf| {
            let folder = folder.canonicalize().ok()?;
            let real = folder.join(path).canonicalize().ok()?;
            (real.starts_with(&folder) && real.join(adapter::CONFIG).is_file()).then_some(real)
        };
        self.folders.iter().find_map(within).ok_or_else(unknown)
    }

    /// The name is the files' own and not what somebody wrote, who may have come by a link.
    fn named(&self, real: PathBuf, name: &Path) -> Arc<Known> {
        let known = self.lock().of(Place::Disk(real));
        known.name.get_or_init(|| name.display().to_string());
        known
    }

    /// Those that were heard of and those that lie in the folders, as far as this door may know of them. Asks the disk.
    pub(crate) fn list(&self, door: Door) -> Vec<Arc<Known>> {
        for folder in &self.folders {
            let Ok(folder) = folder.canonicalize() else { continue };
            for (real, name) in models_in(&folder) {
                self.named(real, &name);
            }
        }
        self.known(door)
    }

    /// Those that were heard of. Asks nobody.
    pub(crate) fn known(&self, door: Door) -> Vec<Arc<Known>> {
        let all = self.lock().by_number.clone();
        all.into_iter().filter(|known| known.is_seen_by(door)).collect()
    }
}

/// Names go into paths, so they are plain ones.
fn check(model: &str) -> Result<(), NotFound> {
    let found = if model.len() > NAME_BYTES_MAX {
        "a longer one"
    } else if model.contains('\0') {
        "a NUL"
    } else if Path::new(model).components().any(|part| matches!(part, Component::ParentDir)) {
        "'..'"
    } else {
        return Ok(());
    };
    Err(NotFound::Malformed { found })
}

fn clipped(name: &str) -> String {
    name.chars().take(100).collect()
}

/// A folder with a configuration, or a file with weights.
fn is_model(path: &Path) -> bool {
    if path.is_dir() {
        return path.join("config.json").is_file();
    }
    path.is_file() && is_weights(path)
}

fn is_weights(path: &Path) -> bool {
    path.extension().is_some_and(|end| end == "gguf" || end == "safetensors")
}

/// What may be one beside those: an index of weights, a folder whose GGUF file is all of the model.
fn is_model_by_path(path: &Path) -> bool {
    let Ok(entries) = std::fs::read_dir(path) else {
        return path.is_file() && path.to_str().is_some_and(|path| path.ends_with(".safetensors.index.json"));
    };
    entries.flatten().take(LISTED_MAX).any(|entry| entry.path().extension().is_some_and(|end| end == "gguf"))
}

/// Models in a folder and in the folders within (`owner/name`), with their names.
fn models_in(folder: &Path) -> Vec<(PathBuf, PathBuf)> {
    let mut found = Vec::new();
    let mut folders = vec![(folder.to_owned(), 0)];
    while let Some((at, depth)) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&at) else { continue };
        for entry in entries.flatten().take(LISTED_MAX) {
            let Ok(real) = entry.path().canonicalize() else { continue };
            let Ok(name) = real.strip_prefix(folder).map(Path::to_owned) else { continue };
            if name.to_str().is_none_or(|name| check(name).is_err()) {
                continue;
            }
            // An adapter is none, nor are its weights.
            let is_adapter = real.join(adapter::CONFIG).is_file();
            if is_model(&real) {
                found.push((real, name));
            } else if depth == 0 && real.is_dir() && !is_adapter {
                folders.push((real, 1));
            }
            if found.len() >= LISTED_MAX {
                return found;
            }
        }
    }
    found
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failure is a failed test.
mod tests {
    use super::*;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("bantam-catalog-{}-{name}", std::process::id()));
            std::fs::create_dir_all(path.join("models/owner/deep")).unwrap();
            std::fs::create_dir_all(path.join("models/plain")).unwrap();
            std::fs::create_dir_all(path.join("secret")).unwrap();
            for folder in ["models/owner/deep", "models/plain", "secret"] {
                std::fs::write(path.join(folder).join("config.json"), "{}").unwrap();
            }
            std::fs::write(path.join("models/one.gguf"), "").unwrap();
            std::fs::write(path.join("models/notes.txt"), "").unwrap();
            std::os::unix::fs::symlink(path.join("secret"), path.join("models/link")).unwrap();
            Folder(path.canonicalize().unwrap())
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_name_is_looked_up_in_the_folders_and_leads_nowhere_else() {
        let folder = Folder::new("names");
        let catalog = Catalog::new(&[folder.0.join("none"), folder.0.join("models")]);
        for name in ["plain", "owner/deep", "owner//deep", "./plain", "one.gguf"] {
            let known = catalog.find(name, Door::Tcp).unwrap();
            assert!(known.path().unwrap().starts_with(folder.0.join("models")), "{name}");
            assert!(catalog.find(&known.handle(), Door::Tcp).is_ok());
            let by_path = catalog.find(known.path().unwrap().to_str().unwrap(), Door::Unix).unwrap();
            assert_eq!(by_path.number(), known.number(), "one model by any name");
        }
        for name in [
            "..",
            "../secret",
            "plain/../../secret",
            "owner",
            "notes.txt",
            "none",
            "plain\0",
            "@7",
            "@-1",
            "@",
            "@x",
            &"n".repeat(5000),
        ] {
            assert!(catalog.find(name, Door::Unix).is_err(), "{name}");
        }
        assert!(matches!(catalog.find("link", Door::Unix), Err(NotFound::Outside { .. })));
    }

    #[test]
    fn adapters_are_found_as_models_are() {
        let folder = Folder::new("adapters");
        for at in ["models/owner/mine", "secret"] {
            std::fs::create_dir_all(folder.0.join(at)).unwrap();
            std::fs::write(folder.0.join(at).join(adapter::CONFIG), "{}").unwrap();
        }
        let catalog = Catalog::new(&[folder.0.join("none"), folder.0.join("models")]);
        let mine = folder.0.join("models/owner/mine");
        for door in [Door::Tcp, Door::Unix] {
            assert_eq!(catalog.adapter("owner/mine", door).unwrap(), mine);
            // A model is none, and a link leads nowhere.
            for name in ["plain", "link", "none", "owner"] {
                assert!(matches!(catalog.adapter(name, door), Err(NotFound::Adapter { .. })), "{name}");
            }
            assert!(matches!(catalog.adapter("../secret", door), Err(NotFound::Malformed { .. })));
        }
        let secret = folder.0.join("secret");
        let path = secret.display().to_string();
        assert_eq!(catalog.adapter(&path, Door::Unix).unwrap(), secret);
        assert!(matches!(catalog.adapter(&path, Door::Tcp), Err(NotFound::PathFromAfar)));
    }

    #[test]
    fn paths_are_for_the_sockets_owner_and_so_are_their_handles() {
        let folder = Folder::new("paths");
        let catalog = Catalog::new(&[folder.0.join("models")]);
        let secret = folder.0.join("secret").display().to_string();
        assert!(matches!(catalog.find(&secret, Door::Tcp), Err(NotFound::PathFromAfar)));
        let known = catalog.find(&secret, Door::Unix).unwrap();
        assert!(matches!(catalog.find(&known.handle(), Door::Tcp), Err(NotFound::Unknown { .. })));
        assert!(catalog.find(&known.handle(), Door::Unix).is_ok());
        let names = |door| {
            let mut names: Vec<String> = catalog.list(door).iter().map(|known| known.name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(Door::Tcp), ["", "one.gguf", "owner/deep", "plain"]);
        assert_eq!(names(Door::Unix).len(), 5);
    }
}
