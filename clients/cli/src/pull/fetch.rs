//! Fetching files: from where an earlier attempt stopped, until every byte is what the hub has listed.

use std::fs::File as DiskFile;
use std::io::Read;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use bantam_model::foreign::clipped;
use ureq::http::{HeaderName, header};

use super::error::PullError;
use super::home::{Home, Place, State};
use super::listing::{File, Repository};
use super::partial::Partial;
use super::web::{Answer, Tries, Web, WebError};
use crate::output;
use crate::progress::Progress;

/// Files that are on their way at once: enough for small ones not to wait for each other's round trips.
const CONNECTIONS: usize = 4;
const PIECE_BYTES: usize = 1 << 17;
/// An attempt that brought so much was worth it.
const GAIN_BYTES: u64 = 1 << 20;
/// A server that sends less than this while it could as well have been silent is not waited for.
const TRICKLE_BYTES: u64 = 1 << 10;
/// How long a pause goes on after another file has failed.
const NAP: Duration = Duration::from_millis(50);

/// All that is needed to fetch the files of a commit.
pub(super) struct Fetcher<'a> {
    pub(super) web: &'a Web,
    pub(super) repository: &'a Repository,
    pub(super) commit: &'a str,
    pub(super) home: &'a Home,
    pub(super) progress: &'a Progress,
    stop: AtomicBool,
}

/// What a server has shown of itself while it sent one file.
#[derive(Default)]
struct Server {
    /// Its name for the bytes it sends, if that is one to compare.
    etag: Option<String>,
    /// Whether it answers for a part with something else.
    is_whole_only: bool,
}

impl<'a> Fetcher<'a> {
    pub(super) fn new(
        web: &'a Web,
        repository: &'a Repository,
        commit: &'a str,
        home: &'a Home,
        progress: &'a Progress,
    ) -> Self {
        Fetcher { web, repository, commit, home, progress, stop: AtomicBool::new(false) }
    }

    /// Fetches all of them, several at once. The first error ends it; what is on its way is kept.
    pub(super) fn fetch_all(&self, files: &[(File, State)]) -> Result<(), PullError> {
        let next = AtomicUsize::new(0);
        let failed: Mutex<Option<PullError>> = Mutex::new(None);
        let work = || {
            while let Some((file, state)) = files.get(next.fetch_add(1, SeqCst)) {
                let Err(error) = self.fetch(file, state) else { continue };
                if !self.stop.swap(true, SeqCst) {
                    *failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                }
                return;
            }
        };
        std::thread::scope(|scope| {
            for _ in 1..CONNECTIONS.min(files.len()) {
                scope.spawn(work);
            }
            work();
        });
        failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
    }

    /// One file, from the state that it was planned in.
    fn fetch(&self, file: &File, planned: &State) -> Result<(), PullError> {
        let place = self.home.place(file);
        place.prepare()?;
        let path = &file.path;
        let waiting = || self.say(&format!("{path}: somebody else is fetching it; waiting"));
        let _lock = place.lock(waiting, || self.stop.load(SeqCst))?;
        // Whoever held the lock may have done it all.
        match (self.home.state(file), self.home) {
            (State::There, _) => self.progress.advance(self.home.needs(file, planned)),
            (State::InCache(_), Home::Cache { .. }) => self.progress.advance(self.home.needs(file, planned)),
            (State::InCache(blob), Home::Folder { .. }) => self.copy(&blob, &place, file)?,
            _ => self.download(&place, file)?,
        }
        self.home.settle(file)
    }

    /// From the cache to a plain folder.
    fn copy(&self, blob: &Path, place: &Place, file: &File) -> Result<(), PullError> {
        let mut from = DiskFile::open(blob).map_err(PullError::disk(blob))?;
        let mut partial = Partial::open(place, file)?;
        partial.restart()?;
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            match from.read(&mut piece).map_err(PullError::disk(blob))? {
                0 => break,
                read => self.keep(&mut partial, &piece[..read])?,
            }
        }
        match partial.is_whole() && partial.fault(file).is_none() {
            true => partial.finish(place),
            // The cache is damaged; the hub is not.
            false => {
                partial.restart()?;
                self.progress.expect_more(file.bytes);
                drop(partial);
                self.download(place, file)
            }
        }
    }

    fn download(&self, place: &Place, file: &File) -> Result<(), PullError> {
        let mut partial = Partial::open(place, file)?;
        loop {
            self.receive(&mut partial, file)?;
            let Some((kind, found)) = partial.fault(file) else { return partial.finish(place) };
            if !partial.is_resumed() {
                partial.remove();
                let expected = file.etag.as_str().to_owned();
                return Err(PullError::Content {
                    file: file.path.clone(),
                    kind: kind.name(),
                    expected,
                    found,
                });
            }
            self.say(&format!("{}: what was here did not belong to it; fetching it anew", file.path));
            self.restart(&mut partial)?;
        }
    }

    /// Bytes until there are enough, over as many connections as that takes.
    fn receive(&self, partial: &mut Partial, file: &File) -> Result<(), PullError> {
        let (mut tries, mut server) = (Tries::new(self.web.patience), Server::default());
        // The most that there ever was, so that a server cannot give and take for ever.
        let mut most = partial.bytes();
        while !partial.is_whole() {
            let error = match self.connect(partial, file, &mut server) {
                Ok(()) => continue,
                Err(PullError::File { source, .. }) => source,
                Err(error) => return Err(error),
            };
            if partial.bytes() >= most.saturating_add(GAIN_BYTES) {
                most = partial.bytes();
                tries.succeeded();
            }
            let Some(pause) = tries.pause(&error) else {
                return Err(self.repository.refusal(error, self.web, None, Some(&file.path)));
            };
            let (what, seconds) = (error.brief(), pause.as_secs_f64().ceil());
            self.say(&format!("{}: {what}; trying again in {seconds} s", file.path));
            self.sleep(pause)?;
        }
        Ok(())
    }

    /// One connection's worth of bytes.
    fn connect(&self, partial: &mut Partial, file: &File, server: &mut Server) -> Result<(), PullError> {
        if server.is_whole_only && partial.bytes() > 0 {
            self.restart(partial)?;
        }
        let mut headers: Vec<(HeaderName, String)> = Vec::new();
        if partial.bytes() > 0 {
            headers.push((header::RANGE, format!("bytes={}-", partial.bytes())));
            headers.extend(server.etag.clone().map(|etag| (header::IF_RANGE, etag)));
        }
        let url = self.repository.address(self.commit, &file.path);
        let answer = self.web.get(&url, &headers).map_err(|error| in_file(file, error))?;
        let is_part = answer.status() == 206;
        if !(answer.status() == 200 || is_part && is_what_was_asked(&answer, partial.bytes(), file)) {
            return self.without_parts(&answer, partial, file, server);
        }
        if !is_part && partial.bytes() > 0 {
            self.restart(partial)?;
        }
        check(&answer, &url, file, file.bytes - partial.bytes())?;
        // Weak names are for contents that are as good as the same.
        server.etag = answer.header("etag").filter(|etag| etag.starts_with('"')).map(str::to_owned);
        self.read(answer, partial, file)
    }

    /// A server that does not understand parts is asked for the whole, once.
    fn without_parts(
        &self,
        answer: &Answer,
        partial: &mut Partial,
        file: &File,
        server: &mut Server,
    ) -> Result<(), PullError> {
        if partial.bytes() == 0 {
            let found = format!("status {} for the whole file", answer.status());
            return Err(PullError::Length { file: file.path.clone(), expected: file.bytes, found });
        }
        server.is_whole_only = true;
        self.restart(partial)
    }

    fn read(&self, answer: Answer, partial: &mut Partial, file: &File) -> Result<(), PullError> {
        let mut reader = answer.into_reader();
        let mut piece = vec![0; PIECE_BYTES];
        let (mut since, mut came) = (Instant::now(), 0);
        loop {
            if self.stop.load(SeqCst) {
                return Err(PullError::Stopped);
            }
            let read = match reader.read(&mut piece) {
                Ok(0) if partial.is_whole() => return Ok(()),
                Ok(0) => return Err(in_file(file, reader.broken("it ended early".to_owned()))),
                // All that was wanted has come; how the connection ends is nobody's concern.
                Err(_) if partial.is_whole() => return Ok(()),
                Err(error) => return Err(in_file(file, error)),
                Ok(read) => read,
            };
            if partial.bytes() + read as u64 > file.bytes {
                let found = "more".to_owned();
                return Err(PullError::Length { file: file.path.clone(), expected: file.bytes, found });
            }
            self.keep(partial, &piece[..read])?;
            came += read as u64;
            if since.elapsed() > self.web.patience.silence {
                if came < TRICKLE_BYTES && !partial.is_whole() {
                    return Err(in_file(file, reader.silent()));
                }
                (since, came) = (Instant::now(), 0);
            }
        }
    }

    fn keep(&self, partial: &mut Partial, piece: &[u8]) -> Result<(), PullError> {
        partial.write(piece)?;
        self.progress.advance(piece.len() as u64);
        Ok(())
    }

    fn restart(&self, partial: &mut Partial) -> Result<(), PullError> {
        self.progress.expect_more(partial.bytes());
        partial.restart()
    }

    fn say(&self, text: &str) {
        self.progress.beside(|| output::warning(text));
    }

    fn sleep(&self, pause: Duration) -> Result<(), PullError> {
        let end = Instant::now() + pause;
        while let Some(left) = end.checked_duration_since(Instant::now()) {
            if self.stop.load(SeqCst) {
                return Err(PullError::Stopped);
            }
            std::thread::sleep(left.min(NAP));
        }
        Ok(())
    }
}

fn in_file(file: &File, source: WebError) -> PullError {
    PullError::File { file: file.path.clone(), source }
}

/// Whether a part is the one that was asked for, of a file of the right length.
fn is_what_was_asked(answer: &Answer, from: u64, file: &File) -> bool {
    let told = || {
        let (range, total) =
            answer.header("content-range")?.trim().strip_prefix("bytes ")?.split_once('/')?;
        let (first, last) = range.split_once('-')?;
        Some((first.parse::<u64>().ok()?, last.parse::<u64>().ok()?, total.parse::<u64>().ok()?))
    };
    from > 0 && told() == Some((from, file.bytes - 1, file.bytes))
}

/// What can be seen of a body before it is read.
fn check(answer: &Answer, url: &str, file: &File, expected: u64) -> Result<(), PullError> {
    let is_page = file.path.rsplit_once('.').is_some_and(|(_, end)| end.starts_with("htm"));
    if answer.is_web_page() && !is_page {
        return Err(PullError::WebPage { url: url.to_owned(), expected: "a file" });
    }
    if let Some(found) =
        answer.header("content-encoding").filter(|found| !found.eq_ignore_ascii_case("identity"))
    {
        return Err(PullError::Encoded { file: file.path.clone(), found: clipped(found) });
    }
    match answer.number("content-length") {
        Some(found) if found != expected => Err(PullError::Length {
            file: file.path.clone(),
            expected: file.bytes,
            found: format!("{} at {}", found.saturating_add(file.bytes - expected), answer.host()),
        }),
        _ => Ok(()),
    }
}
