//! Somebody flushes all rules: how long until they are there again. The way of today has nobody who would look.

use std::time::{Duration, Instant};

use enmesh::base::netlink::{Announcements, Heard, messages};
use nix::sys::socket::SockProtocol;
use tokio::time::timeout;

use crate::Answer;
use crate::host::Host;
use crate::program;
use crate::stats::Sample;
use crate::table::{Table, time};

const ROUNDS: usize = 21;
/// More than ten repairs a second are a quarrel, which the daemon does not take part in.
const PAUSE: Duration = Duration::from_millis(300);
const PATIENCE: Duration = Duration::from_secs(5);
/// The group `NFNLGRP_NFTABLES`, and `NFT_MSG_NEWGEN`.
const NF_TABLES: u32 = 1 << 6;
const NEW_GENERATION: u16 = 15;

/// Waits for the end of a commit.
async fn commit(kernel: &mut Announcements) -> Result<(), String> {
    loop {
        timeout(PATIENCE, kernel.ready())
            .await
            .map_err(|_| "no repair")?
            .map_err(|error| error.to_string())?;
        while let Some(heard) = kernel.take().map_err(|error| error.to_string())? {
            let Heard::Datagram(datagram) = heard else { return Err("announcements were lost".to_owned()) };
            if messages(datagram).any(|message| message.kind & 0xff == NEW_GENERATION) {
                return Ok(());
            }
        }
    }
}

/// Times from the kernel's word that the rules are gone to its word that they are there.
pub fn measure() -> Answer {
    let services = 1;
    let mut host = Host::new(services)?;
    host.write_service(0)?;
    host.start()?;
    host.wait_for_live(1, Duration::from_secs(60))?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let times = runtime.block_on(async {
        let mut kernel = Announcements::join(SockProtocol::NetlinkNetFilter, NF_TABLES)
            .map_err(|error| error.to_string())?;
        let mut times = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            tokio::time::sleep(PAUSE).await;
            while kernel.take().map_err(|error| error.to_string())?.is_some() {}
            // On a thread of its own: whoever listens is not to be late.
            let flush = || program::run("nft", &["flush", "ruleset"], "").map_err(|error| error.to_string());
            let flushing = std::thread::spawn(flush);
            commit(&mut kernel).await?;
            let gone = Instant::now();
            commit(&mut kernel).await?;
            times.push(gone.elapsed());
            flushing.join().map_err(|_| "nft panicked")??;
        }
        Ok::<_, String>(times)
    })?;
    let sample = Sample { name: "the daemon".to_owned(), times };
    let mut table =
        Table::new("All rules flushed, until they are there again", &["", "median", "p90", "longest"]);
    table.row([
        sample.name.clone(),
        time(sample.median()),
        time(sample.quantile(0.9)),
        time(sample.quantile(1.0)),
    ]);
    table.note(format!(
        "{ROUNDS} times `nft flush ruleset`; after scripts and Consul's own command: never, nobody looks"
    ));
    Ok(table)
}
