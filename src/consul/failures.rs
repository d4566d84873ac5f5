//! Every failure.
