//! Rendering in small.
