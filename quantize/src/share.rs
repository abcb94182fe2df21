//! Work in parts, taken by as many threads as there are.

use std::sync::Mutex;
use std::thread;

/// Does every part once. Which thread does which makes no difference to what comes out.
pub(crate) fn share<T: Send>(threads: usize, parts: impl Iterator<Item = T> + Send, work: impl Fn(T) + Sync) {
    if threads <= 1 {
        return parts.for_each(work);
    }
    let parts = Mutex::new(parts);
    let next = || parts.lock().expect("no holder panics").next();
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some(part) = next() {
                    work(part);
                }
            });
        }
    });
}
