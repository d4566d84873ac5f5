//! The loop that converges when something changes.
