//! What programming the kernel's rules can run into.

use crate::base::{Class, Explain};

/// A redirection error.
#[derive(Debug, thiserror::Error)]
pub enum RedirectError {
    /// No `nft` in the system's folders.
    #[error("the program `nft` is not installed")]
    NoNft,
    /// The caller may not change the namespace's rules.
    #[error("the kernel does not let this process change packet filter rules")]
    NotPermitted,
    /// `nft` was built without JSON.
    #[error("this `nft` was built without JSON support")]
    NoJson,
    /// The kernel does not know something that the rules need.
    #[error("the kernel lacks a feature that the rules need: {missing}")]
    KernelLacks {
        /// What, in `nft`'s words.
        missing: String,
    },
    /// Somebody else changes the rules at the same time.
    #[error("the kernel's rules are being changed by somebody else: {message}")]
    Busy {
        /// `nft`'s words.
        message: String,
    },
    /// Refused for another reason.
    #[error("the kernel refused the rules: {message}")]
    Refused {
        /// `nft`'s words.
        message: String,
    },
    /// `nft` printed something that is not what it prints.
    #[error("cannot understand what `nft` answers: {message}")]
    Unreadable {
        /// What is wrong with it.
        message: String,
    },
    /// The rules were accepted, and then were not there as asked for.
    #[error("the rules that were read back are not the ones that were set: {}", differences.join("; "))]
    ReadBack {
        /// The first of the differences.
        differences: Vec<String>,
    },
    /// `nft` or iptables could not be run to its end.
    #[error("cannot run the packet filter's program: {message}")]
    NotRun {
        /// Why.
        message: String,
    },
    /// Somebody changed our rules, and they were set again.
    #[error("{by} changed the rules ({}); they are set again", what.join("; "))]
    Drifted {
        /// Who, as far as it is known.
        by: String,
        /// What was done, and what was missing or too much.
        what: Vec<String>,
    },
    /// Somebody changes our rules again and again.
    #[error("{by} changes the rules again and again; they are set again more and more slowly")]
    Contested {
        /// Who, as far as it is known.
        by: String,
    },
    /// The kernel does not tell of changes.
    #[error("cannot hear of changes of the rules")]
    NoWatch {
        /// The system's answer.
        source: std::io::Error,
    },
    /// No iptables in the system's folders.
    #[error("the program `{program}` is not installed")]
    NoIptables {
        /// What was looked for.
        program: String,
    },
    /// The kernel or iptables does not know something that the rules need.
    #[error("iptables lacks something that the rules need: {missing}")]
    IptablesLacks {
        /// What, in its words.
        missing: String,
    },
    /// iptables refused for another reason.
    #[error("iptables refused the rules: {message}")]
    IptablesRefused {
        /// Its words.
        message: String,
    },
    /// Rules were set in part, and could not be put back.
    #[error("the rules are set in part: {first}; and those of before could not be put back: {second}")]
    HalfSet {
        /// Why the rest was not set.
        first: String,
        /// Why the rules of before could not be put back.
        second: String,
    },
    /// The guard cannot be kept apart from what others flush.
    #[error("a flush of all rules by somebody else will open the host until they are set again: {why}")]
    NotKept {
        /// In `nft`'s words or the system's.
        why: String,
    },
    /// Nothing in this driver lapses by itself.
    #[error("the driver `{driver}` cannot take rules back by itself, so there is nothing to confirm with it")]
    NoTrial {
        /// Its name.
        driver: &'static str,
    },
    /// The recording driver was told to fail.
    #[error("told to fail: {0}")]
    Told(String),
}

impl Explain for RedirectError {
    fn code(&self) -> &'static str {
        match self {
            RedirectError::NoNft => "ENM-R001",
            RedirectError::NotPermitted => "ENM-R002",
            RedirectError::NoJson => "ENM-R003",
            RedirectError::KernelLacks { .. } => "ENM-R004",
            RedirectError::Busy { .. } => "ENM-R005",
            RedirectError::Refused { .. } => "ENM-R006",
            RedirectError::Unreadable { .. } => "ENM-R007",
            RedirectError::ReadBack { .. } => "ENM-R008",
            RedirectError::Told(_) => "ENM-R009",
            RedirectError::NotRun { .. } => "ENM-R010",
            RedirectError::Drifted { .. } => "ENM-R011",
            RedirectError::Contested { .. } => "ENM-R012",
            RedirectError::NoWatch { .. } => "ENM-R013",
            RedirectError::NoIptables { .. } => "ENM-R014",
            RedirectError::IptablesLacks { .. } => "ENM-R015",
            RedirectError::IptablesRefused { .. } => "ENM-R016",
            RedirectError::HalfSet { .. } => "ENM-R017",
            RedirectError::NoTrial { .. } => "ENM-R050",
            RedirectError::NotKept { .. } => "ENM-R060",
        }
    }

    fn hint(&self) -> String {
        match self {
            RedirectError::NoNft => "install the package `nftables`",
            RedirectError::NotPermitted => {
                "run as root, or give the process CAP_NET_ADMIN in its network namespace \
                 (a container: `--cap-add NET_ADMIN`)"
            }
            RedirectError::NoJson => {
                "install an `nft` that has it, such as the package `nftables` of Debian, Ubuntu or Fedora; \
                 `nft --version -V` shows `json: yes`"
            }
            RedirectError::KernelLacks { .. } => {
                "a kernel from 5.6 on with nf_tables, nf_nat, nft_fib_inet, nft_redir and nft_reject_inet is \
                 needed; `modprobe` the missing module, or install the distribution's full kernel"
            }
            RedirectError::Busy { .. } => {
                "try again; if it stays, see with `nft list ruleset` and `nft monitor` who works there"
            }
            RedirectError::Refused { .. } => {
                "the rules from before are in force; `enmesh render nft | nft -c -f -` shows the line that \
                 is refused"
            }
            RedirectError::Unreadable { .. } => {
                "see `nft -j list table inet enmesh`; a wrapper or a much newer `nft` may stand in the way"
            }
            RedirectError::ReadBack { .. } => {
                "something else may edit the table `inet enmesh` or the chains `ENMESH_*`; `nft monitor` shows who"
            }
            RedirectError::NotRun { .. } => {
                "try again; it may have been killed half-way, which leaves either the old rules or the new"
            }
            RedirectError::Drifted { .. } => {
                "leave the table `inet enmesh` and the route of virtual IPs alone; a firewall whose reload \
                 flushes everything (`flush ruleset`) does better to flush its own tables only"
            }
            RedirectError::Contested { .. } => {
                "stop the program that does it: between its changes and the repairs, connections are not \
                 redirected"
            }
            RedirectError::NoWatch { .. } => {
                "rules that others change are set again only when something else happens; let AF_NETLINK \
                 sockets through (RestrictAddressFamilies=)"
            }
            RedirectError::NoIptables { .. } => {
                "install the package `iptables` (both `iptables-restore` and `ip6tables-restore` are needed), or \
                 better `nftables`"
            }
            RedirectError::IptablesLacks { .. } => {
                "the matches addrtype, comment, conntrack, multiport and owner and the targets CT, DNAT, REDIRECT and \
                 REJECT are needed, for IPv4 and IPv6; `modprobe` the missing module (xt_…), or install the \
                 distribution's full kernel; `iptables-legacy` also wants CAP_NET_RAW"
            }
            RedirectError::IptablesRefused { .. } => {
                "the rules from before are in force; `enmesh render iptables` shows all lines"
            }
            RedirectError::HalfSet { .. } => {
                "what refuses is set before what redirects, so nothing goes in the clear; \
                 `enmesh apply` again, and `iptables-save` shows what is there"
            }
            RedirectError::NoTrial { .. } => {
                "install `nftables` (driver = \"auto\" takes it then), or `enmesh apply` without --confirm; \
                 iptables has no rules with a time limit, and a program that takes them back may be dead by then"
            }
            RedirectError::NotKept { .. } => {
                "nothing else is lost; it takes a kernel from 5.12 on, and an `nft` from 1.0 on that knows \
                 `flags owner` and `--interactive`. A firewall that flushes its own tables only needs none of it"
            }
            RedirectError::Told(_) => "this driver is for tests",
        }
        .to_owned()
    }

    fn class(&self) -> Class {
        match self {
            RedirectError::NoNft
            | RedirectError::NoJson
            | RedirectError::KernelLacks { .. }
            | RedirectError::NoIptables { .. }
            | RedirectError::IptablesLacks { .. } => Class::Unavailable,
            RedirectError::NotPermitted => Class::Privilege,
            _ => Class::Failed,
        }
    }
}
