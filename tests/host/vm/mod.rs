//! Machines that really boot: firmware or a kernel of their own, a disk, cloud-init, in QEMU without acceleration, so that it
//! works everywhere. On their switch is a container with a Consul server, a client and a database.
//!
//! | module | what |
//! |---|---|
//! | `guest` | one such machine, and how it is spoken to |
//! | `peer` | the container, and the files it serves |
//! | `stock` | a stock Debian that a seed brings into the mesh; reboot, upgrade, faults, removal |
//! | `image` | the prebuilt image with nothing but its service |
//! | `packer` | the same image, made by Packer |

mod guest;
mod image;
mod packer;
mod peer;
mod stock;
