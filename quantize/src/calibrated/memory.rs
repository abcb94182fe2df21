//! What calibration takes of the memory, known before it is taken.

use bantam_core::Cpu;
use bantam_model::block::Block;
use bantam_model::source::{Source, SourceError};
use bantam_model::spec::LayerSpec;

use super::inputs::WAITING;
use super::{Method, Planes, Settings, ternary};

/// Matrices of a Hessian's size that there are while it is made: the squares, the values, the factor, and what products
/// are made of.
const OF_HESSIAN: usize = 7;
/// The same where columns have factors: the Hessian of the scaled columns stands beside it.
const OF_HESSIAN_WITH_COLUMNS: usize = 9;
/// Copies of a matrix while it is quantized: as it was, as it is wanted, in another order, on its way there.
const OF_MATRIX: usize = 6;
/// Copies of the rows that are fitted together.
const OF_ROWS: usize = 8;

/// The most bytes for so many sequences of calibration text, beside what writing a matrix takes.
pub fn bytes(source: &Source, settings: &Settings, sequences: usize, cpu: Cpu) -> Result<usize, SourceError> {
    let spec = &source.spec;
    let rows = sequences * settings.length;
    let streams = rows * spec.hidden * 4 * if is_corrected(settings) { 2 } else { 1 };
    let mut most = 0;
    for (number, layer) in spec.layers.iter().enumerate() {
        let plan = |replaced| Block::plan(source, number, settings.length, cpu, replaced);
        let (_, lean) = plan(settings.method.replaced())?;
        let mut bytes = lean.bytes() + phases(settings, spec.hidden, layer, rows);
        if let Method::Ternary(_, Planes::Bits(_)) = settings.method {
            // Who gets a second plane is found out in float32, of few sequences.
            bytes = bytes.max(plan(None)?.1.bytes() + phases(settings, spec.hidden, layer, 0));
        }
        most = most.max(bytes);
    }
    Ok(streams + most)
}

fn is_corrected(settings: &Settings) -> bool {
    settings.correct && !matches!(settings.method, Method::Awq(_))
}

/// What is needed at once beside a block and the streams, while its attention is quantized or what comes after it.
fn phases(settings: &Settings, hidden: usize, layer: &LayerSpec, rows: usize) -> usize {
    let corrected = is_corrected(settings);
    let query = layer.attention.heads * layer.attention.head_width;
    let inner = layer.mlp.width;
    let squares = |width: usize| width * width * 4;
    let of_hessian = match settings.method {
        Method::Ternary(ternary::Settings { columns: true, .. }, _) => OF_HESSIAN_WITH_COLUMNS,
        _ => OF_HESSIAN,
    };
    let products = |width: usize| match &settings.method {
        Method::Ternary(settings, _) => settings.products_bytes(width),
        _ => 0,
    };
    let matrix = |rows: usize, width: usize| {
        let copies = OF_MATRIX * rows + OF_ROWS * rows.min(ternary::ROWS);
        of_hessian * squares(width) + copies * width * 4 + products(width)
    };
    // The original's rows, and the streams that products are added to; what connects them.
    let targets = |widths: usize| if corrected { rows * widths * 4 } else { 0 };
    let crossed = |width: usize| if corrected { squares(width) + hidden * width * 4 } else { 0 };
    let plain = |rows: usize, width: usize| matrix(rows, width) + crossed(width);
    let attention = plain(query, hidden).max(plain(hidden, query));
    let of_attention = 2 * hidden + query;
    let Some(experts) = layer.mlp.experts else {
        // Gate and up may be one.
        let inner_ones = plain(2 * inner, hidden).max(plain(hidden, inner));
        return targets(of_attention + 2 * hidden + inner) + attention.max(inner_ones);
    };
    // As many as the budget holds, at least one's.
    let one = squares(hidden.max(inner));
    let gathered = settings.squares_bytes.min(experts.choice.experts * one).max(one);
    let waiting = gathered.div_ceil(one) * WAITING * hidden.max(inner) * 4;
    let of_experts = gathered + waiting + matrix(2 * inner, hidden).max(matrix(hidden, inner));
    of_experts.max(targets(of_attention) + attention)
}
