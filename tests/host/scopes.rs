//! Units named in scopes: the user that systemd makes at a unit's start is captured before the unit's first
//! packet, at every start, also when it is another user than the last time.

use crate::cable::{Listener, OUTSIDE};
use crate::machine::{Machine, enable, put};

/// The only instance of `db`, and where its sidecar would be if there were one.
const DB_PORT: u16 = 5432;
const PEERS: &str = "[[service]]\nname = \"db\"\n\n[[service.instance]]\naddress = \"10.77.0.1\"\n\
    port = 21000\nservice_port = 5432\n";
/// It dials the database at once and all the time; its folder decides which user it gets.
const APP: &str = "[Service]\nType=exec\nDynamicUser=yes\nStateDirectory=shop\nExecStart=/bin/bash -c \
    'while :; do (exec 3<>/dev/tcp/10.77.0.1/5432) 2>/dev/null; done'\n[Install]\nWantedBy=multi-user.target\n";
const UNIT: &str = "shop.service";

fn boot() -> Machine {
    let machine = Machine::boot_with("scopes", |tree| {
        put(tree, "/etc/enmesh/enmesh.toml", "control_plane = \"static\"\n\n[envoy]\ndrain = \"1s\"\n");
        put(tree, "/etc/enmesh/peers.toml", PEERS);
        put(tree, "/etc/systemd/system/shop.service", APP);
        put(
            tree,
            "/etc/enmesh/services/shop.toml",
            "name = \"shop\"\n\n[capture]\nscope = \"unit:shop.service\"\n",
        );
        enable(tree);
    });
    machine.until_ready();
    machine
}

/// The users whose connections are captured.
fn captured(machine: &Machine) -> String {
    machine.must(&["nft", "list", "set", "inet", "enmesh", "captured_uids"])
}

fn uid(machine: &Machine) -> String {
    let pid = machine.property(UNIT, "MainPID");
    machine.must(&["stat", "--format=%u", &format!("/proc/{pid}")]).trim().to_owned()
}

/// systemd takes the owner of the unit's folder for its user, if that is free.
fn next_user(machine: &Machine, uid: u32) {
    machine.must(&["chown", "-R", &format!("{uid}:{uid}"), "/var/lib/private/shop"]);
}

#[test]
fn a_dynamic_user_is_captured_before_its_first_packet() {
    let mut machine = boot();
    // Where its user is not there, neither is what it could send; the sidecar waits.
    assert!(!captured(&machine).contains("elements"), "{}", captured(&machine));
    let clear = Listener::start(&machine.cable().outside, DB_PORT);
    machine.must(&["systemctl", "start", UNIT]);
    let mut users = vec![uid(&machine)];
    let sidecar = machine.property("envoy@shop.service", "MainPID");
    for user in (61_500..61_520).step_by(2) {
        // Two ways to the next start: with a pause in which nobody has the user, and without.
        if user % 4 == 0 {
            machine.must(&["systemctl", "stop", UNIT]);
            machine.until("nobody's", || (!captured(&machine).contains("elements")).then_some(()));
            next_user(&machine, user);
            machine.must(&["systemctl", "start", UNIT]);
        } else {
            next_user(&machine, user);
            machine.must(&["systemctl", "restart", UNIT]);
        }
        users.push(uid(&machine));
        assert_eq!(uid(&machine), user.to_string());
        assert!(captured(&machine).contains(&user.to_string()), "{}", captured(&machine));
        assert_eq!(clear.met(), 0, "in the clear as uid {user}");
    }
    users.dedup();
    assert_eq!(users.len(), 11, "every start had another user: {users:?}");
    assert_eq!(machine.property("envoy@shop.service", "MainPID"), sidecar, "its sidecar has not noticed");

    without_a_daemon(&machine);
    assert_eq!(clear.met(), 0);
    two_units_of_one_user(&machine);
    drop(clear);
    from_power_on(&mut machine);
    out_of_the_mesh(&machine);
}

/// Who cannot be captured does not start; who is captured already does.
fn without_a_daemon(machine: &Machine) {
    machine.must(&["systemctl", "stop", "enmesh"]);
    machine.must(&["systemctl", "restart", UNIT]);
    next_user(machine, 61_600);
    let started = machine.run(&["systemctl", "restart", UNIT]);
    let journal = || machine.journal();
    assert!(!started.status.success(), "it started as {}\n{}", uid(machine), journal());
    assert!(machine.journal().contains("ENM-S021"), "{}", machine.journal());
    machine.must(&["systemctl", "start", "enmesh"]);
    machine.must(&["systemctl", "restart", UNIT]);
    assert_eq!(uid(machine), "61600");
}

/// By their user they cannot be told apart.
fn two_units_of_one_user(machine: &Machine) {
    for name in ["first", "second"] {
        let unit = "[Service]\nUser=daemon\nExecStart=/bin/sleep infinity\n";
        machine.write_file(&format!("/etc/systemd/system/{name}.service"), unit.as_bytes(), 0o644);
        let file = format!("name = \"{name}\"\n\n[capture]\nscope = \"unit:{name}.service\"\n");
        machine.write_file(&format!("/etc/enmesh/services/{name}.toml"), file.as_bytes(), 0o644);
    }
    let fault = machine.until("a refusal", || {
        let status = machine.status();
        status["faults"].as_array()?.iter().find(|fault| fault["code"] == "ENM-P060").cloned()
    });
    let message = fault["message"].as_str().unwrap();
    assert!(message.contains("`first`") && message.contains("`second`"), "{message}");
    assert!(fault["hint"].as_str().unwrap().contains("netns:"), "{fault}");
    machine.must(&["systemctl", "start", "first"]);
    let second = machine.run(&["systemctl", "start", "second"]);
    assert!(!second.status.success(), "it is not in the mesh, and would be heard in the clear");
    machine.must(&["systemctl", "reset-failed", "second"]);
    for name in ["first", "second"] {
        machine.must(&["rm", &format!("/etc/enmesh/services/{name}.toml")]);
    }
    machine.until_ready();
}

/// After a boot as well, with another user than the one of before.
fn from_power_on(machine: &mut Machine) {
    machine.must(&["systemctl", "enable", UNIT]);
    machine.must(&["systemctl", "stop", UNIT]);
    next_user(machine, 61_700);
    machine.power_off();
    machine.power_on();
    let clear = Listener::start(&machine.cable().outside, DB_PORT);
    machine.wait_running();
    machine.until_ready();
    machine.until("the unit", || (machine.property(UNIT, "SubState") == "running").then_some(()));
    assert_eq!(uid(machine), "61700");
    assert!(captured(machine).contains("61700"));
    assert_eq!(clear.met(), 0, "in the clear at boot, from {OUTSIDE}'s view");
}

/// And the proof that the listener would have heard it.
fn out_of_the_mesh(machine: &Machine) {
    let clear = Listener::start(&machine.cable().outside, DB_PORT);
    machine.must(&["enmesh", "down"]);
    let started = machine.run(&["systemctl", "restart", UNIT]);
    assert!(started.status.success(), "{}", machine.journal());
    machine.until("a connection in the clear", || (clear.met() > 0).then_some(()));
    let left = machine.run(&["test", "-e", "/run/systemd/system/shop.service.d"]);
    assert!(!left.status.success(), "the drop-in is gone");
}
