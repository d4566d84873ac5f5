//! Who is out there, and as whom we speak.

mod input;
pub mod peers;
