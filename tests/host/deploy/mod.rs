//! Who sets machines up, each with its own files of this repository: nothing is installed or started here that
//! they would not install or start.
//!
//! | module | what |
//! |---|---|
//! | `seed` | a machine's user-data, as its cloud would hand it over |
//! | `first_boot` | the parts in `cloud-init/`: valid, merged with others', joined, and failed |
//! | `labs` | the Vagrant labs, machine by machine |
//! | `role` | the Ansible role |

mod first_boot;
pub mod seed;
