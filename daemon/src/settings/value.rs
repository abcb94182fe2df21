//! The kinds of value that a setting can have: read from text, whichever source it came from, and shown as TOML.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bantam_model::card::Residency;

use crate::cards::Device;

/// What a setting holds. Every source gives text; files and lists give several items.
pub(super) trait Value: Sized + PartialEq {
    /// Whether the value is a list, of which flags and variables are cut at commas.
    const LIST: bool = false;
    /// Nothing where the text is no such value; the table says what was expected.
    fn parse(text: &str) -> Option<Self>;
    /// As it stands in a file.
    fn show(&self) -> String;
    fn parse_items(items: &[String]) -> Option<Self> {
        match items {
            [one] => Self::parse(one),
            _ => None,
        }
    }
}

/// Text as TOML writes it.
fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

macro_rules! plain {
    ($($kind:ty),+) => {$(
        impl Value for $kind {
            fn parse(text: &str) -> Option<Self> {
                text.parse().ok()
            }
            fn show(&self) -> String {
                self.to_string()
            }
        }
    )+};
}
plain!(bool, u32, usize);

impl Value for String {
    fn parse(text: &str) -> Option<Self> {
        Some(text.to_owned())
    }
    fn show(&self) -> String {
        quoted(self)
    }
}

impl Value for SocketAddr {
    fn parse(text: &str) -> Option<Self> {
        text.parse().ok()
    }
    fn show(&self) -> String {
        quoted(&self.to_string())
    }
}

/// A path of which every form can be shown again: TOML is UTF-8. Empty is "none".
impl Value for PathBuf {
    fn parse(text: &str) -> Option<Self> {
        (!text.contains('\0')).then(|| PathBuf::from(text))
    }
    fn show(&self) -> String {
        quoted(&self.to_string_lossy())
    }
}

impl<T: Value> Value for Vec<T> {
    const LIST: bool = true;
    fn parse(text: &str) -> Option<Self> {
        T::parse(text).map(|one| vec![one])
    }
    fn show(&self) -> String {
        let items: Vec<String> = self.iter().map(T::show).collect();
        format!("[{}]", items.join(", "))
    }
    fn parse_items(items: &[String]) -> Option<Self> {
        items.iter().map(|item| T::parse(item)).collect()
    }
}

/// Units, the largest first, so that a number is shown in the largest that leaves no rest.
const BYTES: [(&str, u64); 4] = [("TiB", 1 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
const SPANS: [(&str, u64); 4] = [("h", 3_600_000), ("m", 60_000), ("s", 1000), ("ms", 1)];

/// A whole number with a unit, or with none, which then counts `bare`.
fn with_unit(text: &str, units: &[(&str, u64)], bare: u64) -> Option<u64> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let unit = match unit.trim_start() {
        "" => bare,
        unit => units.iter().find(|(name, _)| *name == unit)?.1,
    };
    number.parse::<u64>().ok()?.checked_mul(unit)
}

fn in_units(number: u64, units: &[(&str, u64)], bare: &str) -> String {
    let fits = |unit: u64| number > 0 && number.is_multiple_of(unit);
    match units.iter().find(|(_, unit)| fits(*unit)) {
        Some((name, unit)) => format!("{}{name}", number / unit),
        None => format!("{number}{bare}"),
    }
}

/// A number of bytes: `4MiB`, or a plain number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Bytes(pub u64);

impl Value for Bytes {
    fn parse(text: &str) -> Option<Self> {
        with_unit(text, &BYTES, 1).map(Self)
    }
    fn show(&self) -> String {
        quoted(&in_units(self.0, &BYTES, ""))
    }
}

/// A span of time: `10s`, `5m`; a plain number is seconds, and `0s` is "never" where a setting says so.
impl Value for Duration {
    fn parse(text: &str) -> Option<Self> {
        with_unit(text, &SPANS, 1000).map(Self::from_millis)
    }
    fn show(&self) -> String {
        let ms = u64::try_from(self.as_millis()).unwrap_or(u64::MAX);
        quoted(&if ms == 0 { "0s".to_owned() } else { in_units(ms, &SPANS, "ms") })
    }
}

/// How much memory models may take together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Budget {
    /// So many bytes.
    Bytes(u64),
    /// So many hundredths of what the machine (or its control group) has.
    Percent(u8),
}

impl Budget {
    /// The budget of a machine with so many bytes.
    #[must_use]
    pub fn of(self, machine_bytes: u64) -> u64 {
        match self {
            Self::Bytes(bytes) => bytes,
            Self::Percent(percent) => machine_bytes / 100 * u64::from(percent),
        }
    }
}

impl Value for Budget {
    fn parse(text: &str) -> Option<Self> {
        match text.strip_suffix('%') {
            Some(share) => share.parse().ok().filter(|share| (1..=100).contains(share)).map(Self::Percent),
            None => Bytes::parse(text).filter(|bytes| bytes.0 > 0).map(|bytes| Self::Bytes(bytes.0)),
        }
    }
    fn show(&self) -> String {
        match self {
            Self::Bytes(bytes) => Bytes(*bytes).show(),
            Self::Percent(share) => quoted(&format!("{share}%")),
        }
    }
}

impl Value for Residency {
    fn parse(text: &str) -> Option<Self> {
        Residency::named(text)
    }
    fn show(&self) -> String {
        let name =
            Residency::ALL.iter().find(|(_, residency)| residency == self).map_or("", |(name, _)| name);
        quoted(name)
    }
}

impl Value for Device {
    fn parse(text: &str) -> Option<Self> {
        Device::parse(text)
    }
    fn show(&self) -> String {
        quoted(&self.to_string())
    }
}

/// Where figures are served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetricsAt {
    /// Nowhere.
    Off,
    /// At this address of this machine, over HTTP.
    Tcp(SocketAddr),
    /// At this unix socket, over HTTP.
    Unix(PathBuf),
}

impl Value for MetricsAt {
    fn parse(text: &str) -> Option<Self> {
        match (text, text.strip_prefix("unix:")) {
            ("off", _) => Some(Self::Off),
            (_, Some(path)) if Path::new(path).is_absolute() => PathBuf::parse(path).map(Self::Unix),
            (_, Some(_)) => None,
            // Whoever reaches the address reads the figures, so it must be this machine's own.
            _ => SocketAddr::parse(text).filter(|at| at.ip().is_loopback()).map(Self::Tcp),
        }
    }
    fn show(&self) -> String {
        match self {
            Self::Off => quoted("off"),
            Self::Tcp(at) => at.show(),
            Self::Unix(path) => quoted(&format!("unix:{}", path.display())),
        }
    }
}

/// An enum whose values have names.
macro_rules! choice {
    ($(#[$doc:meta])+ $name:ident { $($(#[$of:meta])+ $case:ident = $text:literal,)+ }) => {
        $(#[$doc])+
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum $name { $($(#[$of])+ $case,)+ }
        impl Value for $name {
            fn parse(text: &str) -> Option<Self> {
                match text { $($text => Some(Self::$case),)+ _ => None }
            }
            fn show(&self) -> String {
                quoted(match self { $(Self::$case => $text,)+ })
            }
        }
    };
}

choice!(
    /// How log lines are written.
    LogFormat {
        /// For people.
        Text = "text",
        /// One object per line.
        Json = "json",
    }
);
choice!(
    /// How models compute where a request does not say.
    PrecisionName {
        /// float32 throughout.
        Exact = "exact",
        /// bfloat16 and integer products.
        Fast = "fast",
    }
);
choice!(
    /// How keys and values are stored.
    KvName {
        /// float32 for exact, float16 for fast.
        Auto = "auto",
        /// float32.
        F32 = "f32",
        /// float16.
        F16 = "f16",
        /// Eight bits with a scale.
        Int8 = "int8",
    }
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_with_units_come_back_as_they_were() {
        for (text, bytes) in [("4MiB", 4 << 20), ("1", 1), ("3 KiB", 3 << 10), ("1025", 1025), ("0", 0)] {
            assert_eq!(Bytes::parse(text), Some(Bytes(bytes)), "{text}");
            let shown = Bytes(bytes).show();
            assert_eq!(Bytes::parse(shown.trim_matches('"')), Some(Bytes(bytes)), "{shown}");
        }
        for wrong in ["", "MiB", "4MB", "-1", "1.5GiB", "99999999999TiB", "4MiBs"] {
            assert_eq!(Bytes::parse(wrong), None, "{wrong}");
        }
        for (text, ms) in [("10", 10_000), ("1500ms", 1500), ("2m", 120_000), ("0s", 0)] {
            let span = Duration::from_millis(ms);
            assert_eq!(Duration::parse(text), Some(span), "{text}");
            assert_eq!(Duration::parse(span.show().trim_matches('"')), Some(span), "{text}");
        }
    }

    #[test]
    fn budgets_are_bytes_or_a_share() {
        assert_eq!(Budget::parse("75%").map(|b| b.of(1000)), Some(750));
        assert_eq!(Budget::parse("2GiB"), Some(Budget::Bytes(2 << 30)));
        for wrong in ["0%", "101%", "-1%", "0", "lots"] {
            assert_eq!(Budget::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn figures_stay_on_this_machine() {
        assert_eq!(MetricsAt::parse("off"), Some(MetricsAt::Off));
        assert!(MetricsAt::parse("127.0.0.1:9100").is_some() && MetricsAt::parse("[::1]:9100").is_some());
        assert!(MetricsAt::parse("unix:/run/x.sock").is_some());
        for wrong in ["0.0.0.0:9100", "192.168.0.1:9100", "unix:x.sock", "on", ""] {
            assert_eq!(MetricsAt::parse(wrong), None, "{wrong}");
        }
    }
}
