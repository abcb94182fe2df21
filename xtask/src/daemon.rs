//! The daemon that clients are tried against: built here, started in a folder of its own, ended with its value.

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::steps;

/// Much longer than it takes: who waits so long has found a mistake.
const PATIENCE: Duration = Duration::from_secs(60);

/// Builds it as tests are built, and says where it lies.
pub(crate) fn build(root: &Path) -> Result<PathBuf> {
    let build = ["build", "--locked", "--quiet", "--package", "bantam-daemon", "--bin", "bantamd"];
    steps::run(&mut steps::cargo(root, &build))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let program = root.join(target).join("debug/bantamd");
    ensure!(program.is_file(), "expected the daemon at {}, found nothing", program.display());
    Ok(program)
}

/// A daemon that runs.
pub(crate) struct Daemon {
    process: Child,
    folder: PathBuf,
}

impl Daemon {
    /// Starts one and waits until its socket takes connections. Nothing of the user's is read or written.
    pub(crate) fn start(program: &Path) -> Result<Self> {
        let folder = std::env::temp_dir().join(format!("bantam-xtask-{}", std::process::id()));
        fs::DirBuilder::new().mode(0o700).create(&folder).context("cannot make a folder for the daemon")?;
        let mut command = Command::new(program);
        command.args(["--log-level", "warn"]).stdin(Stdio::null());
        for (name, _) in std::env::vars_os() {
            if name.to_str().is_some_and(|name| name.starts_with("BANTAM_") || name.starts_with("XDG_")) {
                command.env_remove(name);
            }
        }
        let started = command.env("HOME", &folder).env("XDG_RUNTIME_DIR", &folder).spawn();
        let mut daemon = Self { process: started.context("cannot start the daemon")?, folder };
        daemon.wait()?;
        Ok(daemon)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.folder.join("bantam.sock")
    }

    fn wait(&mut self) -> Result<()> {
        let began = Instant::now();
        while UnixStream::connect(self.socket()).is_err() {
            if let Some(status) = self.process.try_wait()? {
                bail!("the daemon ended with {status} before it listened");
            }
            ensure!(began.elapsed() < PATIENCE, "the daemon does not listen after {PATIENCE:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Its end in order is tested elsewhere; here nobody waits for it.
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = fs::remove_dir_all(&self.folder);
    }
}
