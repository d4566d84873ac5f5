//! `enmesh demo`, and `enmesh demo-app`, which its hosts run.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::json;

use super::Global;
use super::output::Answer;
use crate::base::Fault;
use crate::demo::{self, app};

/// Two hosts on this machine, with proof line by line
#[derive(Debug, Args)]
#[command(
    after_help = "Needs root, nft and Envoy (in the system's folders, or where ENMESH_ENVOY says). Everything happens in\nnetwork namespaces of its own. Exit status 1 when one claim does not hold.\n\nExamples:\n  enmesh demo            prove it, clean up\n  enmesh demo --keep     leave the two hosts up, to play with\n  enmesh demo --clean    take them down again"
)]
pub struct Demo {
    /// Leave the two hosts up at the end
    #[arg(long, conflicts_with = "clean")]
    keep: bool,
    /// Only take down what an earlier demo has left
    #[arg(long)]
    clean: bool,
}

impl Demo {
    pub fn run(self, global: &Global) -> Result<Answer, Fault> {
        let options = demo::Options { keep: self.keep, clean: self.clean, json: global.json };
        let report = demo::run(&options)?;
        let mut answer = Answer::new("", &report);
        answer.exit = u8::from(!report.passed());
        Ok(answer)
    }
}

/// The applications of the demo's hosts
#[derive(Debug, Args)]
pub struct DemoApp {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Answer every request
    Serve {
        /// Who answers
        #[arg(long)]
        name: String,
        /// Where
        #[arg(long)]
        listen: SocketAddr,
    },
    /// Ask once
    Get {
        /// What
        url: app::Url,
        /// Goes along in a header
        #[arg(long, default_value = "")]
        secret: String,
    },
    /// Ask many times
    Hammer {
        /// What, in turn
        #[arg(required = true)]
        urls: Vec<app::Url>,
        /// Goes along in a header
        #[arg(long, default_value = "")]
        secret: String,
        /// How often a second
        #[arg(long)]
        rate: u32,
        /// For how long
        #[arg(long)]
        milliseconds: u64,
    },
}

impl DemoApp {
    pub fn run(self) -> Result<Answer, Fault> {
        match self.role {
            Role::Serve { name, listen } => {
                app::serve(&name, listen)?;
                Ok(Answer::new("", &json!({})))
            }
            Role::Get { url, secret } => Ok(printed(&json!(app::get(&url, &secret)))),
            Role::Hammer { urls, secret, rate, milliseconds } => {
                let hammered = app::hammer(&urls, &secret, rate, Duration::from_millis(milliseconds));
                Ok(printed(&json!(hammered)))
            }
        }
    }
}

/// These speak JSON to the demo, whether asked to or not.
fn printed(value: &serde_json::Value) -> Answer {
    Answer::new(value.to_string(), value)
}
