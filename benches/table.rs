//! Rows as text to read and as CSV to keep.

use crate::case::Row;
use crate::ceilings::Unit;

/// The first lines of the table.
pub fn head() -> String {
    format!(
        "{:<62} {:>11} {:>11} {:>12} {:>12} {:>7} {:>12} {:>4}\n",
        "operation/layout/shape/variant",
        "median",
        "least",
        "speed",
        "of ceiling",
        "x best",
        "checksum",
        "runs"
    )
}

/// One case.
pub fn lines(rows: &[Row]) -> String {
    let lines = rows.iter().map(|row| {
        let what = if row.unit == Unit::Read { "GB/s" } else { "GMAC/s" };
        format!(
            "{:<62} {:>11} {:>11} {:>12} {:>12} {:>7.2} {:>12.4} {:>4}\n",
            row.name,
            time(row.median),
            time(row.least),
            format!("{:.1} {what}", row.speed / 1e9),
            format!("{:.0} % {}", row.share * 100.0, row.unit.name()),
            row.ratio,
            row.checksum,
            row.rounds,
        )
    });
    lines.collect()
}

fn time(seconds: f64) -> String {
    match seconds {
        s if s < 1e-3 => format!("{:.1} us", s * 1e6),
        s if s < 1.0 => format!("{:.2} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

/// The first line of the CSV.
pub const CSV_HEAD: &str = concat!(
    "operation,layout,shape,variant,runs,median_us,least_us,",
    "giga_per_s,of,ceiling,share,times_best,checksum\n"
);

/// One case as CSV. `of` says whether bytes or multiply-adds are counted.
pub fn csv(rows: &[Row]) -> String {
    let lines = rows.iter().map(|row| {
        let of = if row.unit == Unit::Read { "bytes" } else { "macs" };
        format!(
            "{},{},{:.2},{:.2},{:.3},{of},{},{:.4},{:.3},{}\n",
            row.name.replace('/', ","),
            row.rounds,
            row.median * 1e6,
            row.least * 1e6,
            row.speed / 1e9,
            row.unit.name(),
            row.share,
            row.ratio,
            row.checksum,
        )
    });
    lines.collect()
}
