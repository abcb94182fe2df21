//! The daemon put together: settings, log lines, a runtime, doors, models, services, and an end in order.

use std::sync::Arc;

use bantam_model::memory;
use bantam_model::native::Store;
use bantam_model::pool::Threads;
use bantam_proto::DESCRIPTORS;

use crate::doors::{Doors, Inherited, InheritedError};
use crate::hands::Hands;
use crate::jobs::Jobs;
use crate::metrics::Meters;
use crate::models::{Catalog, Keeper};
use crate::scheduler::paced::Pace;
use crate::server::{Drain, Server, ServerError, hear_signals};
use crate::services::{NAMES, Services};
use crate::settings::{self, Budget, Flags, Settings, SettingsError, Surroundings};

/// Why the daemon did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// What it was told.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// What a service manager gave it.
    #[error(transparent)]
    Inherited(#[from] InheritedError),
    /// The server.
    #[error(transparent)]
    Server(#[from] ServerError),
    /// No threads for the server.
    #[error("the system gives no threads: {0}; end other programs")]
    Runtime(std::io::Error),
    /// A share of nobody knows how much.
    #[error(
        "models.ram_budget: expected bytes, found a share, and how much memory this machine has cannot be told; \
         set it in bytes, such as \"4GiB\""
    )]
    Memory,
}

/// A daemon with open doors, which lets nobody in yet.
#[derive(Debug)]
pub struct Daemon {
    server: Server,
    services: Services,
}

impl Daemon {
    /// Opens the doors. Native files lie in `store`, where there is one. Call it within a runtime.
    ///
    /// # Errors
    /// Where a door stays shut, or the budget cannot be told.
    pub async fn open(
        settings: Settings,
        inherited: Inherited,
        store: Option<Store>,
    ) -> Result<Self, RunError> {
        let budget = match (settings.ram_budget, memory::total()) {
            (Budget::Bytes(bytes), _) => bytes,
            (share, Some(total)) => share.of(total),
            (_, None) => return Err(RunError::Memory),
        };
        let (settings, meters) = (Arc::new(settings), Arc::new(Meters::default()));
        let server = Server::open(settings.clone(), inherited, meters.clone()).await?;
        let hands = Hands::new(Threads::available());
        let catalog = Arc::new(Catalog::new(&settings.model_folders));
        let store = store.filter(|_| settings.native_files);
        let keeper = Keeper::start(settings.clone(), budget, store, meters.clone(), hands.clone());
        Ok(Self {
            server,
            services: Services { catalog, keeper, hands, jobs: Jobs::default(), meters, settings },
        })
    }

    /// Loads models with an engine that computes nothing, for the bench of all the rest.
    #[doc(hidden)]
    pub fn pace(&self, pace: Pace) {
        self.services.keeper.pace(pace);
    }

    /// Where the doors are.
    #[must_use]
    pub fn doors(&self) -> &Doors {
        self.server.doors()
    }

    /// What ends it.
    #[must_use]
    pub fn drain(&self) -> Drain {
        self.server.drain()
    }

    /// What it counts.
    #[must_use]
    pub fn meters(&self) -> Arc<Meters> {
        self.services.meters.clone()
    }

    /// Serves until it was asked to end, and has; then the models' memory is free.
    ///
    /// # Errors
    /// Where the transport gives up.
    pub async fn serve(self) -> Result<(), RunError> {
        let Self { server, services } = self;
        let served = server.serve(services.routes(), NAMES, &[DESCRIPTORS]).await;
        let (keeper, jobs) = (services.keeper.clone(), services.jobs.clone());
        drop(services);
        // Waits for the end of a step, and for a checkpoint.
        let ended = tokio::task::spawn_blocking(move || {
            keeper.end();
            jobs.end();
        });
        let _ = ended.await;
        Ok(served?)
    }
}

/// Runs the daemon until it is told to end: what `bantamd` does, and `bantam serve`. Takes over the process: log
/// lines go to standard error, signals end it.
///
/// # Errors
/// Where it cannot start, or its transport gives up.
pub fn run(flags: &Flags, around: &Surroundings) -> Result<(), RunError> {
    let settings = settings::read(flags, around)?.settings;
    crate::logs::start(&settings);
    // Before there are other threads: it reads and changes the environment.
    let inherited = Inherited::take()?;
    let store = around.cache_folder().map(Store::new);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    // The engines need the processors more.
    let threads = Threads::available().clamp(1, 4);
    let runtime = runtime.worker_threads(threads).enable_all().build().map_err(RunError::Runtime)?;
    let served = runtime.block_on(async {
        let daemon = Daemon::open(settings, inherited, store).await?;
        tokio::spawn(hear_signals(daemon.drain()));
        daemon.serve().await
    });
    // A load that is under way ends with the process.
    runtime.shutdown_background();
    served
}
