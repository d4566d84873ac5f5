//! The lab: three booted machines on one switch, one with a Consul server, two with an agent, enmesh,
//! a sidecar and an application each that knows nothing of all that. `dashboard` asks `counting`.
//!
//! | module | what |
//! |---|---|
//! | `cluster` | the machines and what is on them |
//! | `apps` | the two applications |
//! | `load` | requests at a steady rate, noted one by one |
//! | `watch` | the wire, listened to |
//! | `bare` | the lab without enmesh: the watch sees what there is to see |
//! | `seed` | the two service files of the field, and all that can happen |
//! | `chaos` | restarts and kills in every order |
//! | `acl` | ACLs that deny by default, tokens of all kinds, intentions |

mod acl;
mod apps;
mod bare;
mod chaos;
pub mod cluster;
mod load;
mod seed;
mod watch;
