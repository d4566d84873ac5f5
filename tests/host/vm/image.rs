//! The prebuilt image: what its first boot is told is a service and which servers its agent joins, and nothing has
//! to be fetched from anywhere; there is nowhere to fetch from on that switch.

use std::net::Ipv4Addr;

use super::guest::{Guest, Recipe, writes};
use super::peer::{APPS, Peer};
use crate::deploy::seed::part;

#[test]
fn the_image_is_in_the_mesh_with_a_service_file_alone() {
    let peer = Peer::boot();
    let [ours, service, consul] =
        ["enmesh", "service", "consul"].map(|name| part(&format!("cloud-init/{name}.yaml")));
    let consul = consul.replace("192.168.56.10", &super::peer::PEER.to_string());
    let run = "#cloud-config\nmerge_how: 'list(append)+dict(no_replace,recurse_list)+str()'\n\
        runcmd:\n  - systemctl enable --now app.service\n";
    let parts = vec![ours, service, consul, writes(&APPS), run.to_owned()];
    let address = Ipv4Addr::new(10, 77, 0, 21);
    let recipe = Recipe { name: "image", disk: "enmesh", firmware: true, address, parts };
    let mut guest = Guest::start(&peer.switch, recipe);
    guest.until_up();
    println!("image: first word after {:?}", guest.uptime());
    guest.until("in the mesh", "enmesh wait --timeout 60s");
    peer.until_asked();
    println!("image: first request through the mesh after {:?}", guest.uptime());
    let db = guest.must("exec 3<>/dev/tcp/db.virtual.consul/5432; head -c 18 <&3");
    assert_eq!(db, "hello in the clear", "the database, over the mesh");

    // It became somebody at this boot.
    let id = guest.must("cat /etc/machine-id");
    assert_eq!(id.trim().len(), 32);
    guest.must("test -s /etc/ssh/ssh_host_ed25519_key");
    guest.until_booted();
    println!("{}", guest.must("systemd-analyze time"));
    let failed = guest.must("systemctl list-units --failed --plain --no-legend");
    assert_eq!(failed, "");
}
