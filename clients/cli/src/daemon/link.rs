//! A connection to a daemon, for code that knows nothing of tasks: every call blocks.

use std::fmt::Display;
use std::future::Future;
use std::path::Path;
use std::time::Duration;

use bantam_proto::v1;
use bantam_proto::v1::generation_service_client::GenerationServiceClient;
use bantam_proto::v1::load_response::Event as LoadEvent;
use bantam_proto::v1::model_service_client::ModelServiceClient;
use tokio::runtime::{Builder, Runtime};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use super::Address;
use crate::failure::{Failure, refused};
use crate::progress::Progress;
use crate::{chosen_model, output};

/// A daemon that has not said that it is well by then is not waited for.
const PATIENCE: Duration = Duration::from_secs(5);
/// Scores and lists may be longer than a usual message.
const MESSAGE_BYTES_MAX: usize = 256 << 20;
/// A token's file holds one line.
const TOKEN_BYTES_MAX: u64 = 4096;

/// A daemon that answers.
#[derive(Debug)]
pub(crate) struct Link {
    /// One worker: the connection has to be kept alive while somebody types, and a cancelled stream to be told of.
    runtime: Runtime,
    channel: Channel,
    token: Option<MetadataValue<Ascii>>,
    address: Address,
    is_named: bool,
}

/// What a step of a daemon's work came to.
#[derive(Debug)]
pub(crate) enum Step<T> {
    Done(T),
    /// The daemon cannot do it; somebody was told so, and the verb goes on without it.
    Without,
}

impl Link {
    pub(super) fn open(
        address: &Address,
        token_file: Option<&Path>,
        ca: Option<&Path>,
        is_named: bool,
    ) -> Result<Self, Failure> {
        let endpoint = endpoint(address, ca)?;
        let token = token_file.map(token).transpose()?;
        let runtime =
            Builder::new_multi_thread().worker_threads(1).thread_name("daemon").enable_all().build();
        let runtime =
            runtime.map_err(|error| refused(format!("no thread for talking to a daemon: {error}")))?;
        let channel = runtime.block_on(async {
            match tokio::time::timeout(PATIENCE, endpoint.connect()).await {
                Ok(connected) => connected.map_err(|error| innermost(&error)),
                Err(_) => Err(format!("no answer for {} seconds", PATIENCE.as_secs())),
            }
        });
        let channel = channel.map_err(|found| nobody(address, &found))?;
        let link = Link { runtime, channel, token, address: address.clone(), is_named };
        link.check()?;
        Ok(link)
    }

    /// Asks whether it is well, which also shows whether it lets us in and is what we think.
    fn check(&self) -> Result<(), Failure> {
        let mut client = HealthClient::new(self.channel.clone());
        let request = self.request(HealthCheckRequest::default());
        let asked =
            self.runtime.block_on(async { tokio::time::timeout(PATIENCE, client.check(request)).await });
        let found = match asked {
            Ok(Ok(answer)) if answer.get_ref().status() == ServingStatus::Serving => return Ok(()),
            Ok(Ok(_)) => "it is ending".to_owned(),
            Ok(Err(status)) if status.code() == Code::Unimplemented => {
                "something that is no bantam".to_owned()
            }
            Ok(Err(status)) => status.message().to_owned(),
            Err(_) => format!("no answer for {} seconds", PATIENCE.as_secs()),
        };
        Err(refused(format!("{}: expected a daemon, found: {found}", self.address)))
    }

    /// Whether paths mean the same there as here.
    pub(crate) fn shares_files(&self) -> bool {
        matches!(self.address, Address::Socket(_))
    }

    /// How requests name a model: by its absolute path, or as it was given where no such path is here.
    pub(crate) fn model(&self, path: Option<&Path>) -> String {
        let Some(path) = path else { return String::new() };
        // A daemon takes no `..`.
        let absolute = chosen_model::found(path).canonicalize().ok().filter(|_| self.shares_files());
        absolute.as_deref().unwrap_or(path).display().to_string()
    }

    /// A request that shows our token.
    pub(crate) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("authorization", token.clone());
        }
        request
    }

    /// Waits for what a client is doing.
    pub(crate) fn wait<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    pub(crate) fn models(&self) -> ModelServiceClient<Channel> {
        ModelServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    pub(crate) fn generation(&self) -> GenerationServiceClient<Channel> {
        GenerationServiceClient::new(self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX)
    }

    /// The next message of a stream.
    pub(crate) fn next<T>(&self, stream: &mut Streaming<T>) -> Result<Option<T>, Failure> {
        self.wait(stream.message()).map_err(|status| self.failure(&status))
    }

    /// What a daemon refused, in its words.
    pub(crate) fn failure(&self, status: &Status) -> Failure {
        let words = match (status.message(), status.code()) {
            ("", Code::Unavailable) => "the connection broke; is it still running?".to_owned(),
            ("", code) => code.description().to_owned(),
            (words, _) => words.to_owned(),
        };
        refused(format!("daemon: {words}"))
    }

    /// Sorts out a refusal before anything was done: what this process can do as well, it does.
    pub(crate) fn or_without<T>(&self, answer: Result<T, Status>) -> Result<Step<T>, Failure> {
        let status = match answer {
            Ok(answer) => return Ok(Step::Done(answer)),
            Err(status) => status,
        };
        let can_do_without = matches!(
            status.code(),
            Code::Unimplemented | Code::Unavailable | Code::FailedPrecondition | Code::NotFound
        ) || matches!(status.code(), Code::PermissionDenied | Code::ResourceExhausted);
        match can_do_without && !self.is_named {
            true => Ok(self.without(status.message())),
            false => Err(self.failure(&status)),
        }
    }

    /// Says that the verb goes on without the daemon.
    fn without<T>(&self, why: impl Display) -> Step<T> {
        output::say(&format!(
            "the daemon cannot do this: {}; going on without it",
            output::harmless(&why.to_string())
        ));
        Step::Without
    }

    /// The same where it was clear before asking; an error where the daemon was asked for by name.
    pub(crate) fn cannot<T>(&self, why: &str) -> Result<Step<T>, Failure> {
        match self.is_named {
            true => {
                Err(refused(format!("a daemon cannot do this: {why}; leave out --connect, or give --local")))
            }
            false => Ok(self.without(why)),
        }
    }

    /// Loads a model, or finds it loaded, with something to look at.
    pub(crate) fn load(
        &self,
        model: &str,
        shown: &str,
        options: v1::LoadOptions,
    ) -> Result<Step<v1::Model>, Failure> {
        let request = self.request(v1::LoadRequest { model: model.to_owned(), options: Some(options) });
        let mut client = self.models();
        let loading = self.wait(async {
            let mut stream = client.load(request).await?.into_inner();
            let (mut waiting, mut reading) = (None, None);
            loop {
                match stream.message().await?.and_then(|message| message.event) {
                    Some(LoadEvent::Loaded(model)) => return Ok(model),
                    Some(LoadEvent::Progress(now)) if now.stage() == v1::LoadStage::Reading => {
                        let total = usize::try_from(now.total_bytes).unwrap_or(usize::MAX);
                        drop(waiting.take());
                        let bar: &mut Progress =
                            reading.get_or_insert_with(|| Progress::bytes(format!("loading {shown}"), total));
                        bar.at(usize::try_from(now.done_bytes).unwrap_or(total));
                    }
                    Some(LoadEvent::Progress(_)) => {
                        waiting.get_or_insert_with(|| {
                            Progress::waiting(format!("waiting for room for {shown}"))
                        });
                    }
                    None => return Err(Status::unavailable("the load ended without a model")),
                }
            }
        });
        self.or_without(loading)
    }
}

fn endpoint(address: &Address, ca: Option<&Path>) -> Result<Endpoint, Failure> {
    let endpoint = Endpoint::from_shared(address.to_string())
        .map_err(|error| refused(format!("{address}: expected an address, found: {error}; correct it")))?;
    match (address, ca) {
        (Address::Tcp(target), Some(ca)) if target.starts_with("https:") => {
            let pem = read(ca, 1 << 20, "certificates in PEM")?;
            let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem));
            endpoint.tls_config(tls).map_err(|error| {
                refused(format!(
                    "{}: expected certificates in PEM, found: {}",
                    ca.display(),
                    innermost(&error)
                ))
            })
        }
        (Address::Tcp(target), None) if target.starts_with("https:") => Err(refused(format!(
            "{address}: the authority of its certificate is missing; give one with --tls-ca FILE"
        ))),
        _ => Ok(endpoint),
    }
}

/// The token of a file, ready to be shown.
fn token(path: &Path) -> Result<MetadataValue<Ascii>, Failure> {
    let expected = "a file with one line, the token";
    let text = read(path, TOKEN_BYTES_MAX, expected)?;
    let mut token: Option<MetadataValue<Ascii>> = match text.trim() {
        "" => None,
        text => format!("Bearer {text}").parse().ok(),
    };
    if let Some(token) = &mut token {
        token.set_sensitive(true);
    }
    token.ok_or_else(|| refused(format!("{}: expected {expected}, found something else", path.display())))
}

fn read(path: &Path, most: u64, expected: &'static str) -> Result<String, Failure> {
    use std::io::Read;
    let failed = |source| Failure::Read { path: path.to_owned(), expected, source };
    let mut text = String::new();
    std::fs::File::open(path).map_err(failed)?.take(most).read_to_string(&mut text).map_err(failed)?;
    Ok(text)
}

/// Libraries wrap what the system said into words that say nothing.
fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string()
}

fn nobody(address: &Address, found: &str) -> Failure {
    let advice = match address {
        Address::Socket(_) => "start one with: bantam serve",
        Address::Tcp(_) => "is it running, and does it listen there (tcp.listen)?",
    };
    refused(format!("{address}: expected a daemon, found none ({found}); {advice}"))
}
