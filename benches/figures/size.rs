//! How big the program is.

use std::path::PathBuf;

use crate::Answer;
use crate::table::Table;

/// The release binary: `ENMESH_BINARY`, else where `make build` puts it.
pub fn binary() -> PathBuf {
    std::env::var_os("ENMESH_BINARY")
        .map_or_else(|| PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/enmesh"), PathBuf::from)
}

/// Bytes of the static, stripped binary.
pub fn measure() -> Answer {
    let path = binary();
    let bytes = std::fs::metadata(&path).map_err(|error| format!("{}: {error}", path.display()))?.len();
    let mut table = Table::new("Size of the program", &["", "MB"]);
    table.row(["enmesh, static, stripped".to_owned(), format!("{:.1}", bytes as f64 / 1e6)]);
    Ok(table)
}
