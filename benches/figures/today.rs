//! Redirection as it is set up on virtual machines today: one `iptables` call a rule, in chains of
//! the names that Consul's own command uses (up to Consul 2.0). Same policy as [`crate::apply`]'s.

use std::error::Error;

use crate::program;

/// The policy that is compared, in numbers.
pub struct Example {
    /// The sidecar's user.
    pub proxy_uid: u32,
    /// Other users that are left alone: the mesh agent's.
    pub other_uids: [u32; 1],
    /// The sidecar's outbound port.
    pub outbound: u16,
    /// The sidecar's public port.
    pub inbound: u16,
    /// The service's own port.
    pub service: u16,
    /// Inbound ports that are left alone.
    pub inbound_skip: [u16; 2],
    /// Outbound ports that are left alone.
    pub outbound_skip: [u16; 2],
    /// Outbound networks that are left alone.
    pub networks: [&'static str; 3],
}

/// A host as the documentation of the old way has it, metadata addresses excluded by hand.
pub const EXAMPLE: Example = Example {
    proxy_uid: 5995,
    other_uids: [5994],
    outbound: 15001,
    inbound: 21000,
    service: 8080,
    inbound_skip: [22, 8500],
    outbound_skip: [3306, 8500],
    networks: ["169.254.169.254/32", "168.63.129.16/32", "10.50.0.0/16"],
};

const CHAINS: [&str; 5] = [
    "CONSUL_DNS_REDIRECT",
    "CONSUL_PROXY_INBOUND",
    "CONSUL_PROXY_IN_REDIRECT",
    "CONSUL_PROXY_OUTPUT",
    "CONSUL_PROXY_REDIRECT",
];

/// The calls' arguments after `-t nat`, in order.
pub fn iptables_calls() -> Vec<String> {
    let example = &EXAMPLE;
    let mut calls: Vec<String> = CHAINS.iter().map(|chain| format!("-N {chain}")).collect();
    calls.extend([
        format!("-A CONSUL_PROXY_REDIRECT -p tcp -j REDIRECT --to-ports {}", example.outbound),
        "-A OUTPUT -p tcp -j CONSUL_PROXY_OUTPUT".to_owned(),
        format!("-A CONSUL_PROXY_OUTPUT -m owner --uid-owner {} -j RETURN", example.proxy_uid),
        "-A CONSUL_PROXY_OUTPUT -d 127.0.0.1/32 -j RETURN".to_owned(),
        "-A CONSUL_PROXY_OUTPUT -j CONSUL_PROXY_REDIRECT".to_owned(),
    ]);
    calls.extend(
        example.outbound_skip.map(|port| format!("-I CONSUL_PROXY_OUTPUT -p tcp --dport {port} -j RETURN")),
    );
    calls.extend(example.networks.map(|net| format!("-I CONSUL_PROXY_OUTPUT -d {net} -j RETURN")));
    calls.extend(
        example.other_uids.map(|uid| format!("-I CONSUL_PROXY_OUTPUT -m owner --uid-owner {uid} -j RETURN")),
    );
    calls.extend([
        format!("-A CONSUL_PROXY_IN_REDIRECT -p tcp -j REDIRECT --to-ports {}", example.inbound),
        "-A PREROUTING -p tcp -j CONSUL_PROXY_INBOUND".to_owned(),
        "-A CONSUL_PROXY_INBOUND -p tcp -j CONSUL_PROXY_IN_REDIRECT".to_owned(),
    ]);
    calls.extend(
        example.inbound_skip.map(|port| format!("-I CONSUL_PROXY_INBOUND -p tcp --dport {port} -j RETURN")),
    );
    calls
}

/// One process a rule.
pub fn with_iptables(calls: &[String]) -> Result<(), Box<dyn Error>> {
    for call in calls {
        let arguments: Vec<&str> = ["-t", "nat"].into_iter().chain(call.split(' ')).collect();
        program::run("iptables", &arguments, "")?;
    }
    Ok(())
}

/// The calls that undo [`iptables_calls`], as the field's stop scripts have them.
pub fn iptables_undo_calls() -> Vec<String> {
    let mut calls = vec![
        "-D OUTPUT -p tcp -j CONSUL_PROXY_OUTPUT".to_owned(),
        "-D PREROUTING -p tcp -j CONSUL_PROXY_INBOUND".to_owned(),
    ];
    calls.extend(CHAINS.map(|chain| format!("-F {chain}")));
    calls.extend(CHAINS.map(|chain| format!("-X {chain}")));
    calls
}

/// The same rules in one go, for those who know `iptables-restore`. What is in the table goes in the
/// same transaction.
pub fn with_iptables_restore(calls: &[String]) -> Result<(), Box<dyn Error>> {
    let lines: String = calls.iter().flat_map(|call| [call.as_str(), "\n"]).collect();
    program::run("iptables-restore", &[], &format!("*nat\n{lines}COMMIT\n"))
}

/// An empty nat table, as before the first call.
pub fn clear_iptables() -> Result<(), Box<dyn Error>> {
    program::run("nft", &["-f", "-"], "table ip nat\ndelete table ip nat\n")
}

/// How many rules of the old way are in force.
pub fn rules_in_force() -> Result<usize, Box<dyn Error>> {
    Ok(program::answer("iptables", &["-t", "nat", "-S"])?
        .lines()
        .filter(|line| line.starts_with("-A"))
        .count())
}
