//! Figures for Prometheus: one table of names, and the values behind them. Counting is an atomic addition and allocates
//! nothing; what has labels is looked up once and kept by whoever counts. `endpoint.rs` serves the text.
//!
//! prometheus-client and not metrics-exporter-prometheus: four small crates instead of a web server and a sketch
//! library, and values that are fields instead of names looked up in a global.

mod endpoint;

use std::sync::Mutex;
use std::sync::atomic::AtomicU64;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

pub use endpoint::{Endpoint, EndpointError};

/// By canonical code.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByCode {
    /// `Ok`, `NotFound` and so on; `Dropped` where the client did not wait for the end.
    pub code: String,
}

/// By a reason out of a fixed set.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByReason {
    /// As `ErrorInfo` gives it.
    pub reason: &'static str,
}

/// By door.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByDoor {
    /// `unix` or `tcp`.
    pub door: &'static str,
}

/// By model.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ByModel {
    /// The name it was loaded by.
    pub model: String,
}

/// From a tenth of a millisecond to about two minutes.
fn seconds() -> Histogram {
    Histogram::new([1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0])
}

macro_rules! meters {
    ($($(#[doc = $doc:literal])+ $field:ident: $kind:ty = $name:literal, $make:expr;)+) => {
        /// Every figure of the daemon. Clones of a field count into the same figure.
        #[derive(Debug)]
        pub struct Meters {
            $($(#[doc = $doc])+ pub $field: $kind,)+
            registry: Mutex<Registry>,
        }

        impl Default for Meters {
            fn default() -> Self {
                let mut registry = Registry::with_prefix("bantam");
                $(
                    let $field: $kind = $make;
                    registry.register($name, concat!($($doc),+).trim().trim_end_matches('.'), $field.clone());
                )+
                Self { $($field,)+ registry: Mutex::new(registry) }
            }
        }
    };
}

meters! {
    /// Connections that are open.
    connections: Family<ByDoor, Gauge> = "connections", Family::default();
    /// Connections that were turned away before a request could be answered.
    connections_dropped: Family<ByReason, Counter> = "connections_dropped", Family::default();
    /// Requests that ended.
    requests: Family<ByCode, Counter> = "requests", Family::default();
    /// Requests that are open, streams included.
    streams: Gauge = "streams", Gauge::default();
    /// Requests that no service saw, because the door or the scheduler refused them.
    refusals: Family<ByReason, Counter> = "refusals", Family::default();
    /// Tokens of prompts that were computed.
    prompt_tokens: Counter = "prompt_tokens", Counter::default();
    /// Tokens of prompts that the cache held already.
    cached_tokens: Counter = "cached_tokens", Counter::default();
    /// Tokens that were generated.
    generated_tokens: Counter = "generated_tokens", Counter::default();
    /// Seconds that a request waited for a slot.
    queue_seconds: Histogram = "queue_seconds", seconds();
    /// Seconds from a request to its first token.
    first_token_seconds: Histogram = "first_token_seconds", seconds();
    /// Seconds between two tokens of a stream.
    token_seconds: Histogram = "token_seconds", seconds();
    /// Bytes that a loaded model takes.
    resident_bytes: Family<ByModel, Gauge> = "resident_bytes", Family::default();
    /// Bytes that models may take together.
    budget_bytes: Gauge<u64, AtomicU64> = "budget_bytes", Gauge::default();
    /// Models that were loaded.
    loads: Family<ByModel, Counter> = "loads", Family::default();
    /// Models that had to make room or were idle for too long.
    evictions: Family<ByReason, Counter> = "evictions", Family::default();
}

impl Meters {
    /// The text that Prometheus reads.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::new();
        let registry = self.registry.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        text::encode(&mut out, &registry).expect("writing to a string does not fail");
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_rendered_under_their_names() {
        let meters = Meters::default();
        meters.requests.get_or_create(&ByCode { code: "Ok".to_owned() }).inc();
        meters.refusals.get_or_create(&ByReason { reason: "NO_TOKEN" }).inc_by(2);
        meters.connections.get_or_create(&ByDoor { door: "unix" }).inc();
        meters.resident_bytes.get_or_create(&ByModel { model: "a \"b\"".to_owned() }).set(3);
        meters.generated_tokens.inc_by(7);
        meters.first_token_seconds.observe(0.02);
        let text = meters.render();
        for line in [
            "bantam_requests_total{code=\"Ok\"} 1",
            "bantam_refusals_total{reason=\"NO_TOKEN\"} 2",
            "bantam_connections{door=\"unix\"} 1",
            "bantam_resident_bytes{model=\"a \\\"b\\\"\"} 3",
            "bantam_generated_tokens_total 7",
            "bantam_first_token_seconds_bucket{le=\"0.03\"} 1",
            "# HELP bantam_streams Requests that are open, streams included.",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }
}
