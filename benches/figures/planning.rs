//! From files to a plan: pure work, no kernel in it.

use std::collections::BTreeMap;
use std::error::Error;
use std::path::PathBuf;

use enmesh::base::Root;
use enmesh::config::{self, Config};
use enmesh::plan::facts::{HostFacts, User};
use enmesh::plan::plan;

use crate::Answer;
use crate::host::{FIRST_UID, Host};
use crate::stats::{self, Way};
use crate::table::{Table, time};

const ROUNDS: usize = 31;

/// Reading and planning 1, 10 and 100 services.
pub fn measure() -> Answer {
    let mut table =
        Table::new("From service files to a plan", &["services", "read the files", "plan()", "together"]);
    for count in [1, 10, 100] {
        table.row(of_services(count)?);
    }
    table.note(format!(
        "medians of {ROUNDS} rounds; files in the page cache; ports and addresses given out before"
    ));
    Ok(table)
}

fn of_services(count: u32) -> Result<Vec<String>, Box<dyn Error>> {
    let host = Host::new(count)?;
    (0..count).try_for_each(|number| host.write_service(number))?;
    let root = Root::new(host.path(""));
    let read = || config::load(&root, &|_| None);
    let config = read();
    let mut facts = facts(count);
    let first = plan(&config, &facts);
    complete(&config, first.services.len(), count)?;
    facts.allocations = first.allocations;
    facts.previous = Some(first.generation);
    let mut ways = [
        Way {
            name: "read".to_owned(),
            before: Box::new(|| Ok(())),
            deed: Box::new(|| complete(&read(), usize::try_from(count)?, count)),
        },
        Way {
            name: "plan".to_owned(),
            before: Box::new(|| Ok(())),
            deed: Box::new(|| complete(&config, plan(&config, &facts).services.len(), count)),
        },
    ];
    let medians: Vec<_> = stats::in_turns(ROUNDS, &mut ways)?.iter().map(stats::Sample::median).collect();
    Ok([count.to_string()]
        .into_iter()
        .chain(medians.iter().map(|&median| time(median)))
        .chain([time(medians.iter().sum())])
        .collect())
}

/// What was read is good, and `planned` is all of it.
fn complete(config: &Config, planned: usize, count: u32) -> Result<(), Box<dyn Error>> {
    match config.errors.first() {
        Some(fault) => Err(fault.to_string().into()),
        None if planned != usize::try_from(count)? => {
            Err(format!("{planned} services planned of {count}").into())
        }
        None => Ok(()),
    }
}

fn facts(count: u32) -> HostFacts {
    let app =
        |number: u32| (format!("app{number}"), User { uid: FIRST_UID + number, gid: FIRST_UID + number });
    let envoy = ("envoy".to_owned(), User { uid: 995, gid: 995 });
    HostFacts {
        hostname: "bench".to_owned(),
        users: (0..count).map(app).chain([envoy]).collect::<BTreeMap<_, _>>(),
        ipv6: true,
        envoy: Some(PathBuf::from("/usr/bin/envoy")),
        ..HostFacts::default()
    }
}
