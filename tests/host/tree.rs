//! The tree of files that every machine starts from: a minimal Debian of the same release as this
//! machine (so that programs built here run there), made once and kept below `target`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::Duration;

use enmesh::base::exec;

/// What is in it beside the essentials.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,nftables,iproute2,systemd-resolved,libnss-resolve";
/// What a provisioned one has besides.
const PROVISIONERS: &str = "cloud-init,ansible-core,python3-apt,gpg,curl,iptables";
/// What nobody reads in there.
const EXCLUDED: [&str; 3] = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*"];
/// Counted up when something else about the recipe changes.
const RECIPE: u32 = 1;
/// How long a download and an installation may take.
const LIMIT: Duration = Duration::from_secs(600);

/// What a machine's tree has.
#[derive(Clone, Copy, Default)]
pub enum Kind {
    /// What enmesh needs.
    #[default]
    Base,
    /// That, and who sets machines up: cloud-init and Ansible.
    Provisioned,
    /// What enmesh needs, and rpm.
    Rpm,
}

/// The tree, made now if need be. Machines copy it; nobody changes it.
pub fn made(kind: Kind) -> PathBuf {
    let kept = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/host-root");
    fs::create_dir_all(&kept).expect("target can be written");
    // Tests run side by side, in several processes even: one makes the tree, the others wait.
    let lock = File::create(kept.join("lock")).expect("target can be written");
    lock.lock().expect("a file can be locked");
    let release = release();
    let (name, packages) = match kind {
        Kind::Base => ("", PACKAGES.to_owned()),
        Kind::Rpm => ("-rpm", format!("{PACKAGES},rpm,dnf")),
        Kind::Provisioned => ("-provisioned", format!("{PACKAGES},{PROVISIONERS}")),
    };
    let recipe = format!("{RECIPE}\n{release}\n{packages}\n{}\n", EXCLUDED.join("\n"));
    let (tree, made_from) = (kept.join(format!("tree{name}")), kept.join(format!("recipe{name}")));
    if fs::read_to_string(&made_from).is_ok_and(|old| old == recipe) && tree.is_dir() {
        return tree;
    }
    let _ = fs::remove_file(&made_from);
    let _ = fs::remove_dir_all(&tree);
    make(&tree, &release, &packages);
    fs::write(&made_from, recipe).expect("target can be written");
    tree
}

fn make(tree: &Path, release: &str, packages: &str) {
    let program = exec::find("mmdebstrap").expect("install the package `mmdebstrap`");
    let mut arguments = vec!["--variant=minbase".to_owned(), format!("--include={packages}")];
    arguments.extend(EXCLUDED.iter().map(|path| format!("--dpkgopt=path-exclude={path}")));
    arguments.push(release.to_owned());
    arguments.push(tree.display().to_string());
    arguments.extend(sources(release));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = exec::run(&program, &arguments, b"", LIMIT).expect("mmdebstrap runs");
    assert!(output.status.success(), "mmdebstrap failed:\n{}", output.stderr);
}

/// This machine's release, such as `bookworm`.
pub fn release() -> String {
    let text = fs::read_to_string("/etc/os-release").expect("this machine has /etc/os-release");
    let line = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    line.expect("the host tests need a Debian or a relative of it").trim_matches('"').to_owned()
}

/// The machine's own package sources of that release: whatever mirror serves this machine.
pub fn sources(release: &str) -> Vec<String> {
    let mut files = vec![PathBuf::from("/etc/apt/sources.list")];
    let folder = fs::read_dir("/etc/apt/sources.list.d").into_iter().flatten().flatten();
    files.extend(folder.map(|entry| entry.path()));
    files.retain(|path| path.extension().is_some_and(|ending| ending == "list" || ending == "sources"));
    files.retain(|path| fs::read_to_string(path).is_ok_and(|text| offers(&text, release)));
    files.sort();
    assert!(!files.is_empty(), "no package source below /etc/apt has the suite {release}");
    files.iter().map(|path| path.display().to_string()).collect()
}

/// Whether a line that is not a comment names the suite as a word.
fn offers(text: &str, release: &str) -> bool {
    let lines = text.lines().filter(|line| !line.trim_start().starts_with('#'));
    lines.flat_map(str::split_whitespace).any(|word| word == release)
}
