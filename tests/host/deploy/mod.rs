//! Who sets machines up, each with its own files of this repository: nothing is installed or started here that
//! they would not install or start.
//!
//! | module | what |
//! |---|---|
//! | `seed` | a machine's user-data, as its cloud would hand it over |
//! | `site` | where it fetches from: files, and a package repository |
//! | `page` | how a page is read and held against what its commands say |
//! | `ways` | the pages that lead somebody into the mesh, run from their first command to their last |
//! | `first_boot` | the parts in `cloud-init/`: valid, merged with others', joined, and failed |
//! | `labs` | the Vagrant labs, machine by machine |
//! | `serve` | what the labs fetch from, their box, and Vagrant as far as it goes without a provider |
//! | `role` | the Ansible role |
//! | `templates` | the templates for container groups, and what validates them |

mod first_boot;
mod labs;
mod page;
mod role;
pub mod seed;
mod serve;
mod site;
mod templates;
mod ways;
