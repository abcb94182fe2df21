//! The link probe: a program with no standard library and no allocator that runs `bantam-core`.
//! It is not a unit test: `tests/no_std.rs` builds it, runs it and reads its exit status. If anything it
//! links uses `alloc`, the build ends with "no global memory allocator"; if anything uses `std`, with
//! "duplicate lang item", because `std` brings a second panic handler. It cannot see a dependency that nobody
//! references; the allow-list in `tests/dependencies.rs` can.
#![no_std]
#![no_main]

mod exercise;

use core::fmt::{self, Write};

// The planted failures: `extern crate` is all it takes for the lock to close.
#[cfg(feature = "plant-alloc")]
extern crate alloc;
#[cfg(feature = "plant-std")]
extern crate std;

// The C library gives the entry point, `memcpy` and its kin, and a way to say what went wrong.
#[link(name = "c")]
unsafe extern "C" {
    fn write(descriptor: i32, bytes: *const u8, count: usize) -> isize;
    fn abort() -> !;
}

/// Standard error, without a buffer.
struct Stderr;

impl Write for Stderr {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            // SAFETY: pointer and count describe the live slice `rest`; `write` only reads it.
            let written = unsafe { write(2, rest.as_ptr(), rest.len()) };
            let written = usize::try_from(written).map_err(|_| fmt::Error)?;
            rest = rest.get(written.max(1)..).ok_or(fmt::Error)?;
        }
        Ok(())
    }
}

#[panic_handler]
fn panic(info: &core::panic::PanicInfo) -> ! {
    // Nothing can be done about a closed stderr; the abort below is the report that counts.
    let _ = writeln!(Stderr, "bantam-no-std-probe: {info}");
    // SAFETY: `abort` takes nothing and does not return.
    unsafe { abort() }
}

/// `core` is compiled with unwinding tables that name this symbol; with `panic = "abort"` nobody calls it.
// SAFETY: no other object in this program defines the symbol, since `std` is not linked.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}

/// The C entry point.
// SAFETY: the C runtime calls the one symbol `main`, and `no_main` keeps Rust from defining another.
#[unsafe(no_mangle)]
extern "C" fn main(_count: i32, _arguments: *const *const u8) -> i32 {
    match exercise::exercise() {
        Ok(()) => 0,
        Err(what) => {
            let _ = writeln!(Stderr, "bantam-no-std-probe: wrong answer: {what}");
            1
        }
    }
}
