//! Models in GGUF files, written out as folders for verbs that begin with those.

use std::path::Path;

use bantam_model::source::Source;
use bantam_quantize::restored::{self, Outcome};
use bantam_quantize::run::Event;
use bantam_quantize::work::Begin;

use crate::failure::Failure;
use crate::output;
use crate::progress::Progress;

/// The folder that stands in for a GGUF file until the output is there.
pub(crate) fn restored(
    source: &Source,
    output: &Path,
    begin: Begin,
    later: u64,
    is_quiet: bool,
) -> Result<Outcome, Failure> {
    if !source.spec.format.is_gguf() {
        return Ok(Outcome::NotNeeded);
    }
    if let Some(words) = restored::lacks(source)? {
        output::warning(&words);
    }
    if !is_quiet {
        let file = source.folder().display();
        output::say(&format!("{file}: written out as safetensors first, in {}.partial", output.display()));
    }
    let progress = Progress::counting(format!("writing out {}", source.folder().display()), 1000);
    let mut tell = |event: Event| {
        if let Event::Writing { bytes: [done, all] } = event {
            progress.at((done as f64 * 1000.0 / all.max(1) as f64) as usize);
        }
    };
    Ok(restored::restore(source, output, begin, later, &mut tell)?)
}
