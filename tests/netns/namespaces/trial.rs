//! `enmesh apply --confirm` and `enmesh confirm`, of services in namespaces: the kernel of each goes back by itself.

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use enmesh::base::files;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::bed::{Bed, LIMIT};
use crate::host_bed::{envoys, until};

/// A port of the other host that is nobody's of the mesh.
const PORT: u16 = 7777;

struct Site {
    bed: Bed,
    to: SocketAddr,
    _listener: TcpListener,
}

impl Site {
    fn new(tag: &str) -> Site {
        let mut bed = Bed::build(tag, &["api", "billing"], "");
        for host in ["near", "far"] {
            bed.start(host);
            bed.await_ready(host);
        }
        bed.app("api");
        bed.app("far");
        let listener = bed.place("far").run(|| TcpListener::bind(("0.0.0.0", PORT)).unwrap()).unwrap();
        let to = SocketAddr::new(bed.far().address.into(), PORT);
        Site { bed, to, _listener: listener }
    }

    /// The file of `api` as it is, but connections to that port are left alone.
    fn leave_the_port_alone(&self) {
        let path = "/etc/enmesh/services/api.toml";
        let text = std::fs::read_to_string(self.bed.near().root().join(path)).unwrap();
        self.bed.near().write(path, &format!("{text}bypass.outbound_ports = [{PORT}]\n")).unwrap();
    }

    fn rules(&self) -> String {
        self.bed.rules(&self.bed.place("api"))
    }

    fn await_rules(&self, what: &str, look: impl Fn(&str) -> bool) {
        let seen = until(what, LIMIT, || {
            let rules = self.rules();
            if look(&rules) { Ok(()) } else { Err(rules) }
        });
        seen.unwrap_or_else(|e| panic!("{e}\n{}", self.bed.log("near")));
    }

    /// Whether the app gets there, with its sidecar dead: only what is left alone does.
    fn goes_direct(&self) -> bool {
        self.bed.open("api", self.to).is_ok()
    }

    fn kill_sidecar(&self) {
        for pid in envoys(&self.bed.place("api")).keys() {
            kill(Pid::from_raw(pid.cast_signed()), Signal::SIGKILL).unwrap();
        }
    }

    fn far_from_api(&self) -> String {
        self.bed.call_soon("api", SocketAddr::new(self.bed.virtual_ip("far"), 80))
    }
}

/// Rules but for the lines that count.
fn without_generation(rules: &str) -> BTreeSet<String> {
    rules
        .lines()
        .filter(|line| !line.contains("enmesh:gen:") && !line.contains("enmesh:keep:"))
        .map(str::to_owned)
        .collect()
}

/// Everybody of enmesh is dead when the time is over, and the rules of before count.
#[test]
fn the_kernel_of_a_namespace_goes_back_by_itself() {
    let mut site = Site::new("ns-lapse");
    let (done, said) = site.bed.enmesh("near", &["apply", "--confirm", "12s"]);
    assert!(done, "{said}");
    site.leave_the_port_alone();
    site.await_rules("the change", |rules| rules.contains(&PORT.to_string()) && rules.contains("trial"));
    site.bed.kill("near");
    site.kill_sidecar();
    assert!(site.goes_direct(), "the change counts");
    let back = until("the rules of before", Duration::from_secs(20), || {
        if site.goes_direct() { Err("direct") } else { Ok(()) }
    });
    back.unwrap();
    assert!(site.rules().contains("trial"), "nobody but the kernel did it");

    // The next daemon takes back the rest, and the namespace is as it was.
    site.bed.start("near");
    site.bed.await_status("near", "ENM-D052", |status| status["faults"].to_string().contains("ENM-D052"));
    site.await_rules("what is taken back", |rules| !rules.contains("trial"));
    assert!(!site.rules().contains(&PORT.to_string()), "{}", site.rules());
    assert_eq!(site.far_from_api(), "far");
    site.bed.assert_host_is_clean();
}

/// A living daemon takes it back; and what a change left out is reached until then.
#[test]
fn the_daemon_takes_back_what_was_left_out() {
    let site = Site::new("ns-out");
    let api = SocketAddr::new(site.bed.virtual_ip("api"), 80);
    let before = site.rules();
    let (done, said) = site.bed.enmesh("near", &["apply", "--confirm", "6s"]);
    assert!(done, "{said}");
    let path = site.bed.near().root().join("/etc/enmesh/services/api.toml");
    let text = files::read(&path, 1 << 20).unwrap().unwrap();
    std::fs::remove_file(&path).unwrap();
    site.bed.await_status("near", "the change", |status| status["services"].get("api").is_none());
    assert_eq!(site.bed.call_soon("far", api), "api", "there is something to go back to");
    site.bed.await_status("near", "what was before", |status| {
        status["services"]["api"]["phase"] == "live" && status["pending"].is_null()
    });
    let (now, before) = (without_generation(&site.rules()), without_generation(&before));
    let differ: Vec<&String> = now.symmetric_difference(&before).collect();
    assert!(differ.is_empty(), "{differ:#?}");
    assert_eq!(site.bed.call_soon("far", api), "api");
    std::fs::write(&path, text).unwrap();
    site.bed.await_ready("near");
}

/// With a daemon and without one.
#[test]
fn what_is_confirmed_stays() {
    let mut site = Site::new("ns-confirm");
    for daemon in [true, false] {
        if !daemon {
            site.bed.write_service("api");
            site.await_rules("the file of before", |rules| !rules.contains(&PORT.to_string()));
            site.bed.kill("near");
            site.leave_the_port_alone();
        }
        let (done, said) = site.bed.enmesh("near", &["apply", "--confirm", "8s"]);
        assert!(done, "{said}");
        if daemon {
            site.leave_the_port_alone();
        }
        site.await_rules("the change", |rules| rules.contains(&PORT.to_string()) && rules.contains("trial"));
        let (done, said) = site.bed.enmesh("near", &["confirm"]);
        assert!(done, "{said}");
        let rules = site.rules();
        assert!(!rules.contains("trial") && !rules.contains("before_"), "{rules}");
        std::thread::sleep(Duration::from_secs(9));
        assert!(site.rules().contains(&PORT.to_string()), "{}", site.rules());
        if !daemon {
            site.kill_sidecar();
            assert!(site.goes_direct());
        }
    }
}
