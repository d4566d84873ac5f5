//! `enmesh ca`

use std::path::PathBuf;
use std::time::SystemTime;

use clap::{Args, Subcommand};

use super::Global;
use super::output::Answer;
use crate::base::Fault;
use crate::config;
use crate::config::value::{ServiceName, Span};
use crate::mesh::{self, InitRequest, IssueRequest, TrustDomain};

/// A local certificate authority, for the control plane `static`
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  enmesh ca init\n  enmesh ca issue api --out /tmp/api-host-ca")]
pub struct Ca {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Make the certificate authority of a mesh
    #[command(
        after_help = "Every host of the mesh needs the folder that this writes (`[static] ca`, /var/lib/enmesh/ca), with\nthe key where certificates are signed on the host itself.\n\nExamples:\n  enmesh ca init\n  enmesh ca init --trust-domain 11111111-2222-3333-4444-555555555555.consul"
    )]
    Init {
        /// The trust domain; a random UUID below `consul` by default
        #[arg(long, value_name = "NAME")]
        trust_domain: Option<TrustDomain>,
        /// Replace a certificate authority that is there
        #[arg(long)]
        force: bool,
    },
    /// Issue a certificate for a service that runs on a host without the authority's key
    #[command(after_help = "Examples:\n  enmesh ca issue api --out /tmp/api-host-ca")]
    Issue {
        /// The service's name
        service: ServiceName,
        /// How long it is valid; `[static] leaf_ttl` by default
        #[arg(long, value_name = "SPAN")]
        ttl: Option<Span>,
        /// The folder to write to
        #[arg(long, value_name = "DIR", default_value = ".")]
        out: PathBuf,
    },
}

impl Ca {
    pub fn run(self, global: &Global) -> Result<Answer, Fault> {
        let root = global.root();
        let settings = config::load(&root, &|name| std::env::var(name).ok()).host.static_mesh;
        let now = SystemTime::now();
        match self.verb {
            Verb::Init { trust_domain, force } => {
                let report = mesh::ca_init(&root, &settings, &InitRequest { trust_domain, force }, now)?;
                let text = format!(
                    "trust domain  {}\ncertificate   {}\nkey           {}\nvalid until   {}\n",
                    report.trust_domain,
                    report.certificate.display(),
                    report.key.display(),
                    report.not_after
                );
                Ok(Answer::new(text, &report))
            }
            Verb::Issue { service, ttl, out } => {
                let report = mesh::ca_issue(&root, &settings, &IssueRequest { service, ttl, out }, now)?;
                let text = format!(
                    "identity      {}\ncertificate   {}\nkey           {}\nroots         {}\nvalid until   {}\n",
                    report.identity,
                    report.certificate.display(),
                    report.key.display(),
                    report.roots.display(),
                    report.not_after
                );
                Ok(Answer::new(text, &report))
            }
        }
    }
}
