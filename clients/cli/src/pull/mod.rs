//! `bantam pull`: fetches a repository of a model hub, into huggingface_hub's cache or a plain folder.
//!
//! It is the only part of Bantam that asks the network for anything; nothing else fetches by itself. In order:
//! `hub.rs` (what the environment says), `listing.rs` (what there is), `choice.rs` (what is wanted), `home.rs` (what is
//! here, and where the rest goes), `fetch.rs` with `partial.rs` and `checksum.rs` (getting it), `web.rs` (HTTP).

mod checksum;
mod choice;
mod error;
mod fetch;
mod home;
mod hub;
mod listing;
mod partial;
#[cfg(test)]
mod tests;
mod web;

use std::env;
use std::path::{Path, PathBuf};

use clap::Args;
use serde_json::{Value, json};

use crate::failure::{Failure, usage};
use crate::interrupt::without_file_size_signal;
use crate::output;
use crate::progress::Progress;
use choice::{Choice, Fate};
use fetch::Fetcher;
use home::{Cache, Home, State};
use hub::{Hub, Variable};
use listing::{File, Listed, Repository};
use web::{Patience, Web};

pub(crate) use error::PullError;

/// Names that are shown of a list.
const SHOWN: usize = 4;

/// Fetches a model from Hugging Face or another hub
#[derive(Args)]
#[command(
    after_help = "Examples:\n  bantam pull openai/gpt-oss-20b\n  bantam pull owner/model --out ./model\n  \
                  bantam pull owner/model-GGUF --include '*Q4_K_M*'\n  bantam pull owner/model --dry-run\n\n\
                  Afterwards `bantam run owner/model PROMPT` finds it. What was interrupted goes on where it\n\
                  stopped. HF_TOKEN is the token for private and gated models, HF_ENDPOINT another hub,\n\
                  HF_HOME or HF_HUB_CACHE another place for the cache, HTTPS_PROXY a proxy."
)]
pub(crate) struct Pull {
    /// The repository, as the hub names it: owner/name
    #[arg(value_name = "REPO")]
    repo: String,
    /// Branch, tag or commit
    #[arg(long, value_name = "REVISION", default_value = "main")]
    revision: String,
    /// Writes plain files to this folder instead of huggingface_hub's cache; what the cache has is taken from there
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Fetches only files whose path fits (`*.json`, `original/`); without it, all but weights in other forms than
    /// the safetensors beside them
    #[arg(long, value_name = "GLOB")]
    include: Vec<String>,
    /// Leaves out files whose path fits
    #[arg(long, value_name = "GLOB")]
    exclude: Vec<String>,
    /// Shows what would be fetched, and fetches nothing
    #[arg(long)]
    dry_run: bool,
    /// Writes a JSON object
    #[arg(long)]
    json: bool,
}

impl Pull {
    pub(crate) fn run(self) -> Result<(), Failure> {
        if !listing::is_repository(&self.repo) {
            return Err(usage(format!(
                "REPO: expected a repository's name such as openai/gpt-oss-20b, found {:?}",
                self.repo
            )));
        }
        if !listing::is_revision(&self.revision) {
            return Err(usage(format!(
                "--revision: expected a branch, tag or commit, found {:?}",
                self.revision
            )));
        }
        let variable = |name: &str| env::var_os(name);
        let hub = Hub::read(&variable)?;
        let patience = Patience::new(hub.silence);
        let repository = Repository { endpoint: hub.endpoint.clone(), name: self.repo.clone() };
        let web = Web::new(hub, patience, &variable)?;
        let asked = self.asked(&variable)?;
        let plan = asked.plan(&web, &repository)?;
        output::say(&plan.summary(&repository));
        if self.dry_run {
            return Ok(output::line(&if self.json { plan.json().to_string() } else { plan.table() })?);
        }
        without_file_size_signal(|| plan.carry_out(&web, &repository, &asked.revision))?;
        let folder = plan.home.folder();
        Ok(output::line(&if self.json { plan.json().to_string() } else { folder.display().to_string() })?)
    }

    fn asked(&self, variable: Variable<'_>) -> Result<Asked, PullError> {
        let cache = hub::cache(variable).map(|root| Cache::new(root, &self.repo));
        if self.out.is_none() && cache.is_none() {
            return Err(PullError::NoCache);
        }
        let choice = Choice { include: self.include.clone(), exclude: self.exclude.clone() };
        Ok(Asked { revision: self.revision.clone(), out: self.out.clone(), cache, choice })
    }
}

/// The snapshot of a repository, `owner/name` or `owner/name@revision`, that was fetched earlier.
pub(crate) fn snapshot(name: &Path) -> Option<PathBuf> {
    let name = name.to_str()?;
    let (name, revision) = name.split_once('@').unwrap_or((name, "main"));
    if !listing::is_repository(name) || !listing::is_revision(revision) {
        return None;
    }
    Cache::new(hub::cache(&|name| env::var_os(name))?, name).find(revision)
}

/// What the user wants, without which hub it comes from.
struct Asked {
    revision: String,
    out: Option<PathBuf>,
    cache: Option<Cache>,
    choice: Choice,
}

/// What is to be done.
struct Plan {
    repo: String,
    revision: String,
    commit: String,
    home: Home,
    files: Vec<(File, State)>,
    /// Weights that nobody asked for.
    duplicates: Vec<Listed>,
    /// What the user does not want.
    excluded: usize,
}

impl Asked {
    /// Asks the hub what there is, and the disk what of it is here.
    fn plan(&self, web: &Web, repository: &Repository) -> Result<Plan, PullError> {
        let waiting = Progress::waiting(format!("asking {} for {}", repository.endpoint, repository.name));
        let listing = repository.list(web, &self.revision)?;
        let total = listing.files.len();
        let paths: Vec<&str> = listing.files.iter().map(|file| file.path.as_str()).collect();
        let fates = self.choice.judge(&paths);
        let (mut wanted, mut duplicates, mut excluded) = (Vec::new(), Vec::new(), 0);
        for (file, fate) in listing.files.into_iter().zip(fates) {
            match fate {
                Fate::Wanted => wanted.push(file),
                Fate::Duplicate => duplicates.push(file),
                Fate::Excluded => excluded += 1,
            }
        }
        if wanted.is_empty() {
            return Err(PullError::NothingChosen { repo: repository.name.clone(), total });
        }
        let commit = listing.commit;
        let details = wanted.into_iter().map(|file| repository.detail(web, &commit, file));
        let files: Vec<File> = details.collect::<Result<_, _>>()?;
        drop(waiting);
        let home = self.home(&commit)?;
        let _looking = Progress::waiting(format!("looking at {}", home.folder().display()));
        let files =
            files.into_iter().map(|file| (home.state(&file), file)).map(|(state, file)| (file, state));
        let (repo, revision) = (repository.name.clone(), self.revision.clone());
        Ok(Plan { repo, revision, commit, files: files.collect(), home, duplicates, excluded })
    }

    fn home(&self, commit: &str) -> Result<Home, PullError> {
        let (cache, commit) = (self.cache.clone(), commit.to_owned());
        match (&self.out, cache) {
            (Some(folder), cache) => Ok(Home::Folder { folder: folder.clone(), cache, commit }),
            (None, Some(cache)) => Ok(Home::Cache { cache, commit }),
            (None, None) => Err(PullError::NoCache),
        }
    }
}

impl Plan {
    fn carry_out(&self, web: &Web, repository: &Repository, revision: &str) -> Result<(), PullError> {
        let needed = self.needed();
        if let Some(free) = self.home.free().filter(|free| *free < needed) {
            let (folder, place) = (self.home.folder(), self.home.choice());
            return Err(PullError::NoRoom { folder, needed, free, place });
        }
        self.home.prepare()?;
        let progress = Progress::transfer(format!("fetching {}", self.repo), needed);
        let (there, rest): (Vec<_>, Vec<_>) =
            self.files.iter().cloned().partition(|(_, state)| *state == State::There);
        Fetcher::new(web, repository, &self.commit, &self.home, &progress).fetch_all(&rest)?;
        if let Home::Folder { .. } = self.home {
            // So that the next time nobody has to read them to know them.
            there.iter().try_for_each(|(file, _)| self.home.settle(file))?;
        }
        self.home.conclude(revision)
    }

    /// Bytes that the disk must hold in addition.
    fn needed(&self) -> u64 {
        self.files.iter().fold(0, |sum, (file, state)| sum.saturating_add(self.home.needs(file, state)))
    }

    /// For people, before anything is fetched.
    fn summary(&self, repository: &Repository) -> String {
        let total = self.files.iter().fold(0_u64, |sum, (file, _)| sum.saturating_add(file.bytes));
        let commit = self.commit.get(..8).unwrap_or(&self.commit);
        let free = self.home.free().map(|free| format!(", {} of disk are free", output::bytes(free)));
        let mut text = format!(
            "{}/{} at {} ({commit}): {} files of {}; {} to fetch{}",
            repository.endpoint,
            self.repo,
            self.revision,
            self.files.len(),
            output::bytes(total),
            output::bytes(self.needed()),
            free.unwrap_or_default()
        );
        if !self.duplicates.is_empty() {
            let names: Vec<&str> =
                self.duplicates.iter().take(SHOWN).map(|file| file.path.as_str()).collect();
            let more = self.duplicates.len().saturating_sub(SHOWN);
            let bytes =
                self.duplicates.iter().fold(0_u64, |sum, file| sum.saturating_add(file.bytes.unwrap_or(0)));
            text += &format!(
                "\nleft out, as the safetensors hold the same: {}{} ({}); --include '*' fetches these too",
                names.join(", "),
                if more > 0 { format!(" and {more} more") } else { String::new() },
                output::bytes(bytes)
            );
        }
        let unknown = self.files.iter().filter(|(file, _)| file.etag.kind().is_none()).count();
        if unknown > 0 {
            text += &format!(
                "\n{unknown} files come without a hash that is known here: only their length is checked"
            );
        }
        output::harmless(&text).into_owned()
    }

    fn table(&self) -> String {
        let mut rows = vec![["file", "size", "here"].map(str::to_owned).to_vec()];
        rows.extend(self.files.iter().map(|(file, state)| {
            let here = match state {
                State::There => "all".to_owned(),
                State::InCache(_) => "in the cache".to_owned(),
                State::Begun(bytes) => output::bytes(*bytes),
                State::Absent => String::new(),
            };
            vec![output::harmless(&file.path).into_owned(), output::bytes(file.bytes), here]
        }));
        output::table(&rows, &[false, true, false])
    }

    fn json(&self) -> Value {
        let files = self.files.iter().map(|(file, state)| {
            let here = match state {
                State::There | State::InCache(_) => file.bytes,
                State::Begun(bytes) => *bytes,
                State::Absent => 0,
            };
            json!({ "path": file.path, "bytes": file.bytes, "hash": file.etag.as_str(), "bytes_here_before": here })
        });
        json!({
            "repository": self.repo,
            "revision": self.revision,
            "commit": self.commit,
            "folder": self.home.folder().display().to_string(),
            "files": files.collect::<Vec<_>>(),
            "bytes_to_fetch": self.needed(),
            "left_out": self.duplicates.iter().map(|file| &file.path).collect::<Vec<_>>(),
            "excluded": self.excluded,
        })
    }
}
