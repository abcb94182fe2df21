//! What can go wrong with a card, in words.

use cudarc::driver::result::DriverError;
use cudarc::driver::sys;

use crate::texts::{DRIVER, OLDEST};

/// Why there is no CUDA on a machine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Absent {
    /// No library to load.
    #[error("no NVIDIA driver (libcuda.so.1 was not found)")]
    NoDriver,
    /// It cannot read our kernels.
    #[error("the NVIDIA driver is for CUDA {}, needed is {} or later: update it", version(*.0), version(DRIVER))]
    OldDriver(u32),
    /// A driver, and nothing to drive.
    #[error("the NVIDIA driver finds no card")]
    NoDevice,
    /// Cards, and not so many.
    #[error("the NVIDIA driver finds no card {number}, only those up to cuda:{}", .cards - 1)]
    NoSuchDevice {
        /// The one that was asked for, counted from 0.
        number: usize,
        /// How many there are.
        cards: usize,
    },
    /// A card before Turing.
    #[error("{name} has compute capability {}.{}, needed is {}.{} or later", .found.0, .found.1, OLDEST.0, OLDEST.1)]
    OldDevice {
        /// Its name.
        name: String,
        /// Its compute capability.
        found: (u32, u32),
    },
    /// Something else.
    #[error("the NVIDIA driver does not start: {0}")]
    Failed(Fault),
}

fn version(number: u32) -> String {
    format!("{}.{}", number / 1000, number % 1000 / 10)
}

/// What went wrong on a card.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Memory that it does not have.
    #[error(
        "the card has no {asked} bytes for {what}: {free} of its {total} are free; lower --vram, or end what else uses it"
    )]
    OutOfMemory {
        /// For what.
        what: &'static str,
        /// Bytes.
        asked: usize,
        /// Bytes that were free.
        free: usize,
        /// Bytes of the card.
        total: usize,
    },
    /// Anything else. The card is not asked again.
    #[error("the card failed at {what}: {code}")]
    Lost {
        /// At what.
        what: &'static str,
        /// The driver's word for it.
        code: &'static str,
    },
}

/// A fault by what the driver answered.
pub(crate) fn fault(what: &'static str, DriverError(code): DriverError) -> Fault {
    Fault::Lost { what, code: name(code) }
}

/// The names that people look for; the driver is not asked, because it may be the one that is gone.
fn name(code: sys::CUresult) -> &'static str {
    use sys::CUresult::*;
    match code {
        CUDA_ERROR_INVALID_VALUE => "CUDA_ERROR_INVALID_VALUE",
        CUDA_ERROR_OUT_OF_MEMORY => "CUDA_ERROR_OUT_OF_MEMORY",
        CUDA_ERROR_NOT_INITIALIZED => "CUDA_ERROR_NOT_INITIALIZED",
        CUDA_ERROR_DEINITIALIZED => "CUDA_ERROR_DEINITIALIZED",
        CUDA_ERROR_NO_DEVICE => "CUDA_ERROR_NO_DEVICE",
        CUDA_ERROR_INVALID_DEVICE => "CUDA_ERROR_INVALID_DEVICE",
        CUDA_ERROR_INVALID_IMAGE => "CUDA_ERROR_INVALID_IMAGE",
        CUDA_ERROR_INVALID_CONTEXT => "CUDA_ERROR_INVALID_CONTEXT",
        CUDA_ERROR_INVALID_HANDLE => "CUDA_ERROR_INVALID_HANDLE",
        CUDA_ERROR_PEER_ACCESS_UNSUPPORTED => "CUDA_ERROR_PEER_ACCESS_UNSUPPORTED",
        CUDA_ERROR_NO_BINARY_FOR_GPU => "CUDA_ERROR_NO_BINARY_FOR_GPU",
        CUDA_ERROR_ECC_UNCORRECTABLE => "CUDA_ERROR_ECC_UNCORRECTABLE",
        CUDA_ERROR_INVALID_PTX => "CUDA_ERROR_INVALID_PTX",
        CUDA_ERROR_UNSUPPORTED_PTX_VERSION => "CUDA_ERROR_UNSUPPORTED_PTX_VERSION",
        CUDA_ERROR_SYSTEM_DRIVER_MISMATCH => "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH",
        CUDA_ERROR_NOT_FOUND => "CUDA_ERROR_NOT_FOUND",
        CUDA_ERROR_ILLEGAL_ADDRESS => "CUDA_ERROR_ILLEGAL_ADDRESS",
        CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES => "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES",
        CUDA_ERROR_LAUNCH_TIMEOUT => "CUDA_ERROR_LAUNCH_TIMEOUT",
        CUDA_ERROR_LAUNCH_FAILED => "CUDA_ERROR_LAUNCH_FAILED",
        CUDA_ERROR_DEVICE_UNAVAILABLE => "CUDA_ERROR_DEVICE_UNAVAILABLE",
        CUDA_ERROR_NOT_SUPPORTED => "CUDA_ERROR_NOT_SUPPORTED",
        CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED => "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED",
        CUDA_ERROR_STREAM_CAPTURE_INVALIDATED => "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED",
        _ => "an error that is not in our list",
    }
}
