//! How long a client waits. The transport has a timer for it that knows nothing of codes and says "cancelled": here it
//! is a deadline, and it comes first.

use std::time::Duration;

/// Says how long.
pub(crate) const HEADER: &str = "grpc-timeout";
/// Time that is left for saying so.
const MARGIN: Duration = Duration::from_millis(5);

/// How long a service may take, a little less than the client waits.
pub(crate) fn of_service(header: &[u8]) -> Option<Duration> {
    let timeout = read(str::from_utf8(header).ok()?)?;
    Some(timeout - MARGIN.min(timeout / 10))
}

/// The same of the gate: a service that sees its time end says more, and comes first.
pub(crate) fn of_gate(header: &[u8]) -> Option<Duration> {
    let timeout = read(str::from_utf8(header).ok()?)?;
    Some(timeout - MARGIN.min(timeout / 10) / 2)
}

/// Up to eight digits and a unit.
fn read(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let number: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(number * 3600)),
        "M" => Some(Duration::from_secs(number * 60)),
        "S" => Some(Duration::from_secs(number)),
        "m" => Some(Duration::from_millis(number)),
        "u" => Some(Duration::from_micros(number)),
        "n" => Some(Duration::from_nanos(number)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        let ms = Duration::from_millis;
        for (text, expected) in [
            ("1S", Some(ms(1000))),
            ("250m", Some(ms(250))),
            ("99999999H", Some(Duration::from_secs(99_999_999 * 3600))),
            ("2M", Some(ms(120_000))),
            ("5u", Some(Duration::from_micros(5))),
            ("7n", Some(Duration::from_nanos(7))),
            ("", None),
            ("S", None),
            ("-1S", None),
            ("1", None),
            ("1é", None),
            ("123456789S", None),
        ] {
            assert_eq!(read(text), expected, "{text}");
        }
    }
}
