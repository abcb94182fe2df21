//! Products of a matrix in every layout: with one token, beside the copies of the same rounds, and with many, on tensor
//! cores and without them.

use std::time::{Duration, Instant};

use bantam_core::layouts::{LAYOUTS, Layout, TILE_ROWS};
use bantam_cuda::{Desk, Extent, TENSOR_FROM};
use bantam_model::speed::Spread;

use super::record::Section;
use super::{Problem, Scale};

/// What is measured.
struct Sizes {
    /// Bytes of a matrix, about; of all but the first something is asked.
    bytes: [usize; 3],
    /// Rows of a matrix that meets many tokens.
    rows: usize,
    /// Tokens, and how many of these numbers the kernels for a few are measured with.
    tokens: &'static [usize],
    few: usize,
    /// Rounds that count, after so long that a card is awake.
    rounds: usize,
    warm: Duration,
    /// The same with many tokens, and bytes of weights that these meet in each.
    many_rounds: usize,
    many_bytes: usize,
    extent: Extent,
}

const COLUMNS: usize = 4096;
const TOKENS: &[usize] = &[2, 4, 8, 12, 16, 24, 32, 48, 64, 128, 256, 512];
const FULL: Sizes = Sizes {
    bytes: [20 << 20, 64 << 20, 192 << 20],
    rows: 16_384,
    tokens: TOKENS,
    few: 9,
    rounds: 21,
    warm: Duration::from_millis(50),
    many_rounds: 7,
    many_bytes: 192 << 20,
    extent: Extent {
        // Three of the largest matrix, and more than ten times the largest cache of a card.
        weights: 672 << 20,
        copied: 256 << 20,
        tokens: 512,
        columns: COLUMNS,
        // Of the largest matrix of two bits one token's, of the one for many all.
        out: 512 * 16_384,
    },
};
const QUICK: Sizes = Sizes {
    bytes: [1 << 13, 1 << 14, 1 << 15],
    rows: 64,
    tokens: &[2, 16],
    few: 2,
    rounds: 1,
    warm: Duration::ZERO,
    many_rounds: 1,
    many_bytes: 1,
    extent: Extent { weights: 3 << 16, copied: 1 << 14, tokens: 16, columns: 256, out: 1 << 14 },
};
/// Of the bandwidth of copies, for larger matrices.
const ASKED: f64 = 0.85;
/// Of `matvec` in a tiny run, which is slow on a stand-in.
const QUICK_LAYOUTS: usize = 5;

pub(crate) fn section(scale: Scale) -> Result<Section, Problem> {
    let sizes = if scale.quick { &QUICK } else { &FULL };
    let mut section = Section::new("matvec");
    let mut desk = Desk::new(0, sizes.extent)?;
    let mut layouts: Vec<&'static dyn Layout> = LAYOUTS.to_vec();
    if scale.quick {
        layouts.truncate(QUICK_LAYOUTS);
    }
    of_one(&mut section, &mut desk, sizes, &layouts, scale.part(2))?;
    section.line("");
    of_many(&mut section, &mut desk, sizes, &layouts, scale)?;
    Ok(section)
}

/// One layout in one size.
struct OfOne {
    bytes: usize,
    micros: Spread,
    rate: Spread,
    share: Spread,
    copy: Spread,
    read: Spread,
    is_kept: bool,
}

fn giga(rate: f64) -> String {
    format!("{:.1}", rate / 1e9)
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

fn of_one(
    section: &mut Section,
    desk: &mut Desk,
    sizes: &Sizes,
    layouts: &[&'static dyn Layout],
    scale: Scale,
) -> Result<(), Problem> {
    section.line(&format!(
        "One token, input prepared each time; copies of the matrix take turns over {} MiB and are kept as a graph, as\n\
         a decoder's products are. GB/s of stored weights; a copy counts what it reads and what it writes; `read`\n\
         is a kernel that only reads (the search for rows' largest). Medians of {} rounds, shares round by round.\n",
        sizes.extent.weights >> 20,
        sizes.rounds,
    ));
    let names = [
        "matvec",
        "MiB",
        "us",
        "GB/s",
        "of copies",
        "least",
        "most",
        "of read",
        "copy GB/s",
        "read GB/s",
        "",
    ];
    let mut rows = vec![names.map(str::to_owned).to_vec()];
    for layout in layouts {
        for (at, &about) in sizes.bytes.iter().enumerate() {
            let name = layout.name();
            let asked = format!("{name}, {} MiB, of copies", about >> 20);
            let is_asked = at > 0;
            if scale.is_over() {
                if is_asked {
                    section.pend(&asked, &percent(ASKED), "the time was over");
                }
                continue;
            }
            let found = turns(desk, sizes, *layout, about)?;
            let mib = found.bytes as f64 / f64::from(1 << 20);
            rows.push(vec![
                name.to_owned(),
                format!("{mib:.1}"),
                format!("{:.2}", found.micros.median),
                giga(found.rate.median),
                percent(found.share.median),
                percent(found.share.least),
                percent(found.share.most),
                percent(found.rate.median / found.read.median),
                giga(found.copy.median),
                giga(found.read.median),
                if found.is_kept { "" } else { "no graph" }.to_owned(),
            ]);
            if is_asked {
                let share = found.share.median;
                section.ask(&asked, &percent(ASKED), percent(share), share >= ASKED);
            }
        }
    }
    section.table(&rows);
    Ok(())
}

fn turns(
    desk: &mut Desk,
    sizes: &Sizes,
    layout: &'static dyn Layout,
    about: usize,
) -> Result<OfOne, Problem> {
    let tile_bytes = layout.tile_bytes(sizes.extent.columns);
    let tiles = about.div_ceil(tile_bytes);
    let matrices = desk.matrices(layout, tiles * TILE_ROWS);
    desk.check()?;
    let is_kept = desk.keep(&matrices);
    let bytes = tiles * tile_bytes;
    let (mut seconds, mut copies, mut reads) = (Vec::new(), Vec::new(), Vec::new());
    let start = Instant::now();
    while seconds.len() < sizes.rounds {
        let is_awake = start.elapsed() > sizes.warm;
        let copy = desk.copy_rate()?;
        let read = desk.read_rate()?;
        let all = if is_kept { desk.kept_seconds()? } else { desk.seconds(1, &matrices)? };
        if is_awake {
            seconds.push(all / matrices.len() as f64);
            copies.push(copy);
            reads.push(read);
        }
    }
    let rates: Vec<f64> = seconds.iter().map(|seconds| bytes as f64 / seconds).collect();
    let shares: Vec<f64> = rates.iter().zip(&copies).map(|(rate, copy)| rate / copy).collect();
    let micros: Vec<f64> = seconds.iter().map(|seconds| 1e6 * seconds).collect();
    Ok(OfOne {
        bytes,
        micros: Spread::of(&micros),
        rate: Spread::of(&rates),
        share: Spread::of(&shares),
        copy: Spread::of(&copies),
        read: Spread::of(&reads),
        is_kept,
    })
}

/// Median seconds of a layout's product by its tokens, with the kernels for a few and on tensor cores.
type OfMany = [Vec<f64>; 2];

fn of_many(
    section: &mut Section,
    desk: &mut Desk,
    sizes: &Sizes,
    layouts: &[&'static dyn Layout],
    scale: Scale,
) -> Result<(), Problem> {
    section.line(&format!(
        "Many tokens and {} x {} weights, copies of them that no cache holds together, queued one by one:\n\
         microseconds by the number of tokens, medians of {} rounds in turns. `from` is the least number from\n\
         which on tensor cores were never slower.\n",
        sizes.rows, sizes.extent.columns, sizes.many_rounds,
    ));
    let mut head = ["product", "kernel", "from"].map(str::to_owned).to_vec();
    head.extend(sizes.tokens.iter().map(usize::to_string));
    head.push("TOP/s".to_owned());
    let mut rows = vec![head];
    let mut worst: Option<(f64, &str)> = None;
    let mut left_out = false;
    for &layout in layouts {
        if scale.is_over() {
            left_out = true;
            break;
        }
        let (found, has_tensor) = many_turns(desk, sizes, layout)?;
        let from = has_tensor.then(|| overtakes(sizes, &found)).flatten();
        let at_bound = sizes.tokens[..sizes.few].iter().position(|&tokens| tokens == TENSOR_FROM);
        if let (true, Some(at)) = (has_tensor, at_bound) {
            let ratio = found[1][at] / found[0][at];
            worst = Some(worst.filter(|(most, _)| *most >= ratio).unwrap_or((ratio, layout.name())));
        }
        for (kernel, seconds) in
            ["for few", "tensor"].iter().zip(&found).filter(|(_, found)| !found.is_empty())
        {
            rows.push(row(sizes, layout.name(), kernel, from, seconds));
        }
    }
    section.table(&rows);
    let what = format!("{TENSOR_FROM} tokens, tensor cores by the kernels for few, the worst layout");
    match worst {
        Some((ratio, name)) if !left_out => {
            section.ask(&what, "1.00 at most", format!("{ratio:.2} ({name})"), ratio <= 1.0);
        }
        _ => section.pend(&what, "1.00 at most", "the time was over, or no layout has both"),
    }
    Ok(())
}

/// The least number of tokens from which on tensor cores are never slower.
fn overtakes(sizes: &Sizes, [few, tensor]: &OfMany) -> Option<usize> {
    let behind = few.iter().zip(tensor).rposition(|(few, tensor)| tensor > few);
    sizes.tokens[..sizes.few].get(behind.map_or(0, |at| at + 1)).copied()
}

fn row(sizes: &Sizes, name: &str, kernel: &str, from: Option<usize>, seconds: &[f64]) -> Vec<String> {
    let mut row = vec![name.to_owned(), kernel.to_owned()];
    row.push(match (kernel, from) {
        ("tensor", Some(tokens)) => tokens.to_string(),
        _ => "-".to_owned(),
    });
    let cell = |at: usize| seconds.get(at).map_or("-".to_owned(), |seconds| format!("{:.1}", 1e6 * seconds));
    row.extend((0..sizes.tokens.len()).map(cell));
    let ops = |(tokens, seconds): (&usize, &f64)| {
        2.0 * (sizes.rows * sizes.extent.columns * tokens) as f64 / seconds / 1e12
    };
    let best = sizes.tokens.iter().zip(seconds).map(ops).fold(0.0, f64::max);
    row.push(format!("{best:.2}"));
    row
}

/// Times both kernels in turns; whether the layout has one for tensor cores on this card.
fn many_turns(
    desk: &mut Desk,
    sizes: &Sizes,
    layout: &'static dyn Layout,
) -> Result<(OfMany, bool), Problem> {
    let mut matrices = desk.matrices(layout, sizes.rows);
    desk.check()?;
    // More than a cache holds, and no more: each is met in every round.
    let enough = sizes.many_bytes.div_ceil(matrices[0].slot.bytes);
    matrices.truncate(enough.max(1));
    let has_tensor = desk.backend().has_tensor_kernel(&matrices[0]);
    let mut found: OfMany = [Vec::new(), Vec::new()];
    for (at, &tokens) in sizes.tokens.iter().enumerate() {
        let kernels = [(usize::MAX, at < sizes.few || !has_tensor), (1, has_tensor)];
        let mut seconds: OfMany = [Vec::new(), Vec::new()];
        for _ in 0..=sizes.many_rounds {
            for ((from, is_asked), seconds) in kernels.iter().zip(&mut seconds) {
                if *is_asked {
                    desk.backend().set_tensor_from(*from);
                    seconds.push(desk.seconds(tokens, &matrices)? / matrices.len() as f64);
                }
            }
        }
        for (found, seconds) in found.iter_mut().zip(&seconds).filter(|(_, seconds)| !seconds.is_empty()) {
            found.push(Spread::of(&seconds[1..]).median);
        }
    }
    desk.backend().set_tensor_from(TENSOR_FROM);
    Ok((found, has_tensor))
}
