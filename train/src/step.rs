//! One step of training: forward, loss, backward, optimizer.
