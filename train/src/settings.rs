//! The files that say what to train, in which every key is known.
