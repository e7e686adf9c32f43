//! Writes `docs/xds-support.md` again; with `skeleton`, prints what `config/support/fields.txt` lacks.

use std::io::Write;

use anyhow::Result;
use outrigger::config::support;

fn main() -> Result<()> {
    if std::env::args().nth(1).as_deref() == Some("skeleton") {
        std::io::stdout().write_all(support::skeleton().as_bytes())?;
        return Ok(());
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/xds-support.md");
    std::fs::write(path, support::document())?;
    Ok(())
}
