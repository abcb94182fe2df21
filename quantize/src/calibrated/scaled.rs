//! AWQ over a block: all its inputs are those of the original, scales go into the norms and matrices before them, then
//! every matrix is cut and rounded.

use bantam_model::block::{Block, BlockInput};

use super::awq::{self, Inputs};
use super::inputs::Kept;
use super::{Calibrated, said};
use crate::layerwise::{Hand, MethodError};
use crate::matrix::Quantized;

/// Quantizes a block, and lets the original's own results stand for the next one's inputs.
pub(super) fn layer(
    calibrated: &mut Calibrated,
    settings: &awq::Settings,
    number: usize,
    block: &mut Block,
    listed: &[usize],
    hand: &mut dyn Hand,
) -> Result<(), MethodError> {
    let _ = (number, said(&MethodError(String::new())));
    let work = super::Work { cpu: calibrated.cpu, pool: &calibrated.pool };
    let kept = Kept::gather(work, block, &calibrated.streams, listed, None);
    for &module in listed {
        let squares = kept.of(module);
        let shape = block.modules()[module].shape;
        let weights = block.weights(module);
        let _ = Inputs { squares: &squares.own, means: &squares.means() };
        let clip = block.modules()[module].input != BlockInput::Attention;
        let found = awq::quantize(work, settings, &squares.own, shape, &weights, clip);
        hand.quantized(&block.modules()[module].name, Quantized::Grouped(found), &[])?;
    }
    drop(kept);
    block.run(&mut calibrated.streams, &mut ());
    Ok(())
}
