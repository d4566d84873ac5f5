//! The templates for container groups and the Ansible role, read by what validates them. Each kind of fault is tried
//! as well, because a validator that takes anything says nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use enmesh::base::exec::{self, Output};

use super::seed::repository;

const LIMIT: Duration = Duration::from_secs(120);
/// File, what stands there, what somebody might write instead, and what is said about it.
const FAULTS: [(&str, &str, &str, &str); 6] = [
    ("bicep/group.bicep", "osType:", "osTyp:", "no such key: osTyp"),
    ("bicep/group.bicep", "memoryInGB", "memory", "memoryInGB is missing"),
    ("bicep/group.bicep", "'CAP_NET_ADMIN' ] }", "'CAP_NET_ADMIN' ], drops: [] }", "no such key: drops"),
    (
        "bicep/main.bicep",
        "    openPort: 8080\n",
        "",
        "openPort is given and unknown, or wanted and not given",
    ),
    ("terraform/group/main.tf", "os_type ", "os_typ  ", "no such argument: os_typ"),
    ("terraform/group/main.tf", "ENMESH_REGISTRATION ", "ENMESH_REGISTERED   ", "set by one of the two only"),
];

fn tool(name: &str) -> PathBuf {
    let path = repository().join("target/tools/validators/bin").join(name);
    assert!(path.is_file(), "there is no {}; scripts/fetch-validators puts it there", path.display());
    path
}

fn run(program: &Path, arguments: &[&str]) -> (bool, String) {
    let Output { status, stdout, stderr, .. } = exec::run(program, arguments, b"", LIMIT).expect("it runs");
    (status.success(), format!("{}{stderr}", String::from_utf8_lossy(&stdout)))
}

fn check(folder: &Path) -> (bool, String) {
    let script = repository().join("scripts/check-templates");
    run(&tool("python"), &[script.to_str().expect("text"), folder.to_str().expect("text")])
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).expect("a folder can be made");
    for entry in fs::read_dir(from).expect("a folder").flatten() {
        let there = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &there)
        } else {
            fs::copy(entry.path(), there).expect("room");
        }
    }
}

#[test]
fn templates_describe_what_there_is() {
    let (valid, said) = check(&repository().join("aci"));
    assert!(valid, "{said}");
    for (file, right, wrong, expected) in FAULTS {
        let folder = tempfile::tempdir().expect("a folder can be made");
        copy(&repository().join("aci"), folder.path());
        let path = folder.path().join(file);
        let text = fs::read_to_string(&path).expect("a template");
        assert!(text.contains(right), "{file} has no {right:?}");
        fs::write(&path, text.replace(right, wrong)).expect("it can be written");
        let (valid, said) = check(folder.path());
        assert!(!valid && said.contains(expected), "{wrong:?}: {said}");
    }
}

#[test]
fn the_role_is_as_ansible_wants_roles() {
    let folder = repository().join("ansible");
    let path = format!("PATH={}:/usr/bin:/bin", repository().join("target/tools/validators/bin").display());
    let arguments = [
        "HOME=/tmp",
        "LC_ALL=C.UTF-8",
        &path,
        "ansible-lint",
        "--offline",
        "--nocolor",
        "--profile=production",
    ];
    let chdir = format!("--chdir={}", folder.display());
    let arguments: Vec<&str> = [chdir.as_str()].into_iter().chain(arguments).collect();
    let (valid, said) = run(&exec::find("env").expect("env"), &arguments);
    assert!(valid && said.contains("Passed: 0 failure(s)"), "{said}");
}
