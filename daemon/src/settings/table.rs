//! The one table of settings: each row is a field, its description, its key in the file, its default and what it may
//! be. The struct, the keys, their variables (`BANTAM_` and the key in capitals) and flags follow from it.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bantam_model::card::Residency;
use bantam_model::formats::on_load;

use crate::cards::Device;

use super::value::{Budget, Bytes, KvName, LogFormat, MetricsAt, PrecisionName, Value};

/// What a table's row says of a setting, without its type.
pub struct Key {
    /// `section.name`, or a name alone.
    pub name: &'static str,
    /// What it is for.
    pub doc: &'static str,
    /// What its value must be.
    pub expected: &'static str,
    /// Whether it takes several values.
    pub list: bool,
    pub(super) put: fn(&mut Settings, &[String]) -> bool,
    pub(super) show: fn(&Settings) -> String,
}

impl Key {
    /// Its description, line by line. (A macro gets a comment's quotes with a backslash.)
    pub fn lines(&self) -> impl Iterator<Item = String> {
        self.doc.lines().map(|line| line.trim().replace("\\\"", "\""))
    }

    /// The environment variable that sets it.
    #[must_use]
    pub fn variable(&self) -> String {
        format!("BANTAM_{}", self.name.replace('.', "_").to_uppercase())
    }

    /// The flag that sets it, without its dashes.
    #[must_use]
    pub fn flag(&self) -> String {
        self.name.replace(['.', '_'], "-")
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Key({})", self.name)
    }
}

macro_rules! settings {
    ($($(#[doc = $doc:literal])+ $field:ident: $kind:ty = $name:literal, $default:expr, $check:expr,
        $expected:literal;)+) => {
        /// All that the daemon can be told, read and checked.
        #[derive(Debug, Clone, PartialEq)]
        pub struct Settings { $($(#[doc = $doc])+ pub $field: $kind,)+ }

        /// Every setting, in the order in which they are printed.
        pub static KEYS: &[Key] = &[$(Key {
            name: $name,
            doc: concat!($($doc, "\n"),+),
            expected: $expected,
            list: <$kind as Value>::LIST,
            put: |settings, items| {
                let check: fn(&$kind) -> bool = $check;
                match <$kind as Value>::parse_items(items).filter(check) {
                    Some(value) => { settings.$field = value; true }
                    None => false,
                }
            },
            show: |settings| settings.$field.show(),
        },)+];

        impl Default for Settings {
            /// The table's defaults; paths that depend on the user are still empty.
            fn default() -> Self {
                Self { $($field: {
                    let items: &[&str] = &$default;
                    let items: Vec<String> = items.iter().map(|&item| item.to_owned()).collect();
                    <$kind as Value>::parse_items(&items).expect("a default in the table is of its kind")
                },)+ }
            }
        }
    };
}

fn quantization(name: &str) -> bool {
    name.is_empty() || on_load::way(name).is_some()
}

const DAY: Duration = Duration::from_secs(86_400);

/// From a second (so that nothing is cut off by a typing error) to a day.
fn span(value: &Duration) -> bool {
    (Duration::from_secs(1)..=DAY).contains(value)
}

fn span_or_never(value: &Duration) -> bool {
    value.is_zero() || span(value)
}

settings! {
    /// The unix socket. Empty: $XDG_RUNTIME_DIR/bantam.sock, or a folder of the user's own under /tmp.
    socket: PathBuf = "socket", [""], |path| path.as_os_str().is_empty() || path.is_absolute(), "an absolute path";
    /// Computing threads. 0: one per core.
    threads: usize = "threads", ["0"], |n| *n <= 1024, "a whole number from 0 to 1024";

    /// Addresses to listen at as well. They need tokens or a client authority, or open_loopback.
    tcp_listen: Vec<SocketAddr> = "tcp.listen", [], |all| all.len() <= 16, "up to 16 addresses like \"127.0.0.1:7421\"";
    /// Lets every program and user of this machine in by TCP addresses of this machine, without a token.
    tcp_open_loopback: bool = "tcp.open_loopback", ["false"], |_| true, "true or false";
    /// A file (mode 0600) with a line \"name: token\" for each client that may come in by TCP.
    tcp_tokens: PathBuf = "tcp.tokens", [""], |_| true, "a path";
    /// The certificates to show, PEM, the server's own first.
    tls_certificate: PathBuf = "tls.certificate", [""], |_| true, "a path";
    /// The private key of the certificate, PEM.
    tls_key: PathBuf = "tls.key", [""], |_| true, "a path";
    /// The authority whose clients may come in by their certificates, PEM.
    tls_client_ca: PathBuf = "tls.client_ca", [""], |_| true, "a path";

    /// Folders in which a model's name is looked up; a request by TCP may name nothing outside of them.
    model_folders: Vec<PathBuf> = "models.folders", [], |all| all.iter().all(|one| one.is_absolute()), "absolute paths";
    /// Memory that models may take together, as bytes or a share of the machine's.
    ram_budget: Budget = "models.ram_budget", ["75%"], |_| true, "bytes like \"6GiB\", or a share like \"75%\"";
    /// Models that may be loaded at once, whatever they take.
    max_models: usize = "models.max", ["16"], |n| (1..=256).contains(n), "a whole number from 1 to 256";
    /// A model that nobody used for so long leaves the memory. 0s: never.
    idle: Duration = "models.idle", ["10m"], span_or_never, "a span from 1s to 24h, or 0s";
    /// How models compute where a request does not say.
    load_precision: PrecisionName = "models.precision", ["fast"], |_| true, "exact or fast";
    /// How keys and values are stored; auto is float32 for exact precision, for fast float16, or what suits the family
    /// where a card computes.
    load_kv: KvName = "models.kv", ["auto"], |_| true, "auto, f32, f16 or int8";
    /// Quantizes the matrices of the layers that are not yet while loading. Empty: as they are.
    load_quantization: String = "models.quantization", [""], |name| quantization(name),
        "a way to quantize as --quantization of bantam run takes it, or nothing";
    /// The same for the head.
    load_head: String = "models.head", [""], |name| quantization(name),
        "a way to quantize as --head of bantam run takes it, or nothing";
    /// The same for the experts of a mixture. Empty: as the layers.
    load_experts: String = "models.experts", [""], |name| quantization(name),
        "a way to quantize as --experts of bantam run takes it, or nothing";
    /// What computes models: a card (cuda, or cuda:1 for the second) or several (cuda:0,1) with the processor for what
    /// does not fit there, the same where any is found (auto), or the processor alone (cpu).
    device: Device = "models.device", ["auto"], |_| true,
        "auto, cpu, cuda or cuda:N with a card's number, or several with commas between them";
    /// Memory of each card that models may take together, until somebody changes it. 0: what is free when one is
    /// loaded.
    vram: Bytes = "models.vram", ["0"], |_| true, "bytes like \"4GiB\", or 0";
    /// What of a model stands on a card that does not hold it: shares of every layer, so that both compute (auto), the
    /// same with all else passing through the card for every token (pinned), or nothing, so that all passes (lru).
    residency: Residency = "models.residency", ["auto"], |_| true, "auto, pinned or lru";
    /// Room beside each model for adapters that requests name, all of a model's together. 0: no request may name one.
    adapter_bytes: Bytes = "models.adapter_bytes", ["0"], |n| n.0 <= 1 << 40, "bytes like \"256MiB\", up to 1TiB, or 0";
    /// Whether repacked weights are kept in native files for the next start.
    native_files: bool = "models.native_files", ["true"], |_| true, "true or false";

    /// Sequences that one model computes at once.
    slots: usize = "schedule.slots", ["8"], |n| (1..=256).contains(n), "a whole number from 1 to 256";
    /// Tokens that a sequence may have. 0: what the model knows, at most 4096.
    context: usize = "schedule.context", ["0"], |n| *n <= 1 << 30, "a whole number from 0 to 1073741824";
    /// Tokens of a prompt that are computed between two steps of running sequences.
    prefill_chunk: usize = "schedule.prefill_chunk", ["128"], |n| (1..=1 << 16).contains(n),
        "a whole number from 1 to 65536";
    /// Whether what a reply has read rests until others need the room, so that the next turn of the same client reads
    /// only what is new.
    prefix_cache: bool = "schedule.prefix_cache", ["true"], |_| true, "true or false";
    /// Requests that may wait for one model.
    queue: usize = "schedule.queue", ["256"], |n| (1..=1 << 16).contains(n), "a whole number from 1 to 65536";
    /// Tokens that may wait for a stream's connection; what HTTP/2 has taken for its reader comes on top.
    tokens_in_flight: usize = "schedule.tokens_in_flight", ["64"], |n| (1..=4096).contains(n),
        "a whole number from 1 to 4096";
    /// A reader that took nothing for so long loses its stream.
    slow_reader: Duration = "schedule.slow_reader", ["30s"], span, "a span from 1s to 24h";

    /// Bytes of one message.
    message_bytes: Bytes = "limits.message_bytes", ["4MiB"], |n| (1 << 10..=1 << 30).contains(&n.0),
        "bytes from 1KiB to 1GiB";
    /// Bytes of one request's headers.
    header_bytes: Bytes = "limits.header_bytes", ["16KiB"], |n| (1 << 10..=1 << 20).contains(&n.0),
        "bytes from 1KiB to 1MiB";
    /// Requests that one connection may have open.
    streams: u32 = "limits.streams", ["100"], |n| (1..=10_000).contains(n), "a whole number from 1 to 10000";
    /// Connections of each door.
    connections: usize = "limits.connections", ["256"], |n| (1..=65_536).contains(n), "a whole number from 1 to 65536";
    /// Requests that one client may have open, over all its connections.
    requests: usize = "limits.requests", ["256"], |n| (1..=65_536).contains(n), "a whole number from 1 to 65536";
    /// A connection must have greeted (TLS included) by then, and shown its token in six times as long.
    handshake: Duration = "limits.handshake", ["5s"], span, "a span from 1s to 24h";
    /// A request must have arrived whole by then.
    arrival: Duration = "limits.arrival", ["30s"], span, "a span from 1s to 24h";
    /// Silent connections are asked for a sign of life this often, and given as long to answer. 0s: never.
    keep_alive: Duration = "limits.keep_alive", ["20s"], span_or_never, "a span from 1s to 24h, or 0s";
    /// Streams may go on for so long when the daemon is asked to end.
    drain: Duration = "limits.drain", ["10s"], |value| *value <= DAY, "a span up to 24h";

    /// Where Prometheus reads figures: off, an address of this machine, or unix: and a path.
    metrics: MetricsAt = "metrics.listen", ["off"], |_| true,
        "off, a loopback address like \"127.0.0.1:9421\", or \"unix:/path\"";
    /// What is logged: error, warn, info, debug or trace, or directives like \"info,h2=warn\".
    log_level: String = "log.level", ["info"], |text| crate::logs::filter(text).is_some(),
        "a level, or directives like \"info,bantam_daemon=debug\"";
    /// How log lines are written: text or json.
    log_format: LogFormat = "log.format", ["text"], |_| true, "text or json";
}
