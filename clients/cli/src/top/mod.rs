//! `bantam top`: what a daemon does at the moment, live. It only watches, and passes on what keys ask for.

mod terminal;
mod view;

use std::io::{self, IsTerminal};
use std::time::Duration;

use bantam_proto::v1;
use clap::Args;
use tokio::sync::mpsc;
use tonic::{Status, Streaming};

use crate::daemon::{DaemonPlace, Link};
use crate::failure::{Failure, usage};
use crate::{models, output};
use terminal::{Key, Terminal};
use view::View;

/// How often figures come.
const EVERY: Duration = Duration::from_millis(500);
/// For a single look: rates are those between two figures.
const SOON: Duration = Duration::from_millis(200);
const FIGURES: usize = 2;
/// A single look without figures is better than none.
const PATIENCE: Duration = Duration::from_secs(5);
/// Columns of a single look that nobody may be watching.
const WIDTH: usize = 100;

/// Shows what a daemon does: models, memory, streams, events
#[derive(Args)]
#[command(
    after_help = "Keys: up and down choose a model, p pins it or lets it go, u unloads it, q ends.\n\n\
                        Examples:\n  bantam top\n  bantam top --once --json"
)]
pub(crate) struct Top {
    /// Shows it once, and ends
    #[arg(long)]
    once: bool,
    /// Writes a JSON object
    #[arg(long, requires = "once")]
    json: bool,
    #[command(flatten)]
    daemon: DaemonPlace,
}

impl Top {
    pub(crate) fn run(self) -> Result<(), Failure> {
        if !(self.once || io::stdin().is_terminal() && io::stdout().is_terminal()) {
            return Err(usage("top needs a terminal; for scripts write: bantam top --once --json"));
        }
        let link = self.daemon.need()?;
        let every = if self.once { SOON } else { EVERY };
        let request =
            v1::WatchResidencyRequest { figures_every: prost_types::Duration::try_from(every).ok() };
        let mut client = link.models();
        let watched = link.wait(client.watch_residency(link.request(request)));
        let stream = watched.map_err(|status| link.failure(&status))?.into_inner();
        match self.once {
            true => self.once(&link, stream),
            false => live(&link, stream),
        }
    }

    fn once(&self, link: &Link, mut stream: Streaming<v1::WatchResidencyResponse>) -> Result<(), Failure> {
        let mut view = View::default();
        let looked = link.wait(async {
            let look = async {
                while view.figures_seen() < FIGURES {
                    match stream.message().await? {
                        Some(message) => view.apply(message),
                        None => break,
                    }
                }
                Ok::<_, Status>(())
            };
            tokio::time::timeout(PATIENCE, look).await
        });
        if let Ok(Err(status)) = looked {
            return Err(link.failure(&status));
        }
        match self.json {
            true => Ok(output::json(&view.json())?),
            false => Ok(output::line(&view.lines(WIDTH, usize::MAX, false).join("\n"))?),
        }
    }
}

/// Draws until somebody has seen enough, or the daemon ends.
fn live(link: &Link, mut stream: Streaming<v1::WatchResidencyResponse>) -> Result<(), Failure> {
    let mut terminal = Terminal::open()?;
    let mut keys = terminal::keys();
    let (told, mut said) = mpsc::unbounded_channel();
    let mut view = View::default();
    let ended = link.wait(async {
        loop {
            let (width, height) = terminal::size();
            terminal.draw(&view.lines(width, height, true))?;
            tokio::select! {
                message = stream.message() => match message {
                    Ok(Some(message)) => view.apply(message),
                    Ok(None) => return Ok(Err(Status::unavailable("the daemon has ended"))),
                    Err(status) => return Ok(Err(status)),
                },
                Some(words) = said.recv() => view.note(words),
                key = keys.recv() => match key {
                    None | Some(Key::Quit) => return Ok::<_, io::Error>(Ok(())),
                    Some(Key::Up) => view.choose(-1),
                    Some(Key::Down) => view.choose(1),
                    Some(Key::Pin) => pin(link, &view, &told),
                    Some(Key::Unload) => unload(link, &view, &told),
                },
            }
        }
    });
    drop(terminal);
    let ended: io::Result<Result<(), Status>> = ended;
    ended?.map_err(|status| link.failure(&status))
}

type Told = mpsc::UnboundedSender<String>;

/// Pins the chosen model, or lets it go. What comes of it is told by the daemon's events.
fn pin(link: &Link, view: &View, told: &Told) {
    let Some(model) = view.chosen() else { return };
    let pin = !models::is_pinned(model);
    let options = v1::LoadOptions { pin: Some(pin), ..v1::LoadOptions::default() };
    let request = link.request(v1::LoadRequest { model: model.id.clone(), options: Some(options) });
    let (mut client, told) = (link.models(), told.clone());
    tokio::spawn(async move {
        let loading = async {
            let mut stream = client.load(request).await?.into_inner();
            while stream.message().await?.is_some() {}
            Ok::<_, Status>(())
        };
        tell(loading.await, &told);
    });
}

fn unload(link: &Link, view: &View, told: &Told) {
    let Some(model) = view.chosen() else { return };
    let request = link.request(v1::UnloadRequest { model: model.id.clone() });
    let (mut client, told) = (link.models(), told.clone());
    tokio::spawn(async move { tell(client.unload(request).await.map(drop), &told) });
}

fn tell(done: Result<(), Status>, told: &Told) {
    if let Err(status) = done {
        // Nobody listens any more where the view is closed.
        let _ = told.send(status.message().to_owned());
    }
}
