//! Examples on their way to batches: data sets, templates, masks, packing.
