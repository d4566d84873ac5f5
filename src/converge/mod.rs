//! Plan -> the host, idempotent and killable at any line.
