//! `aci/image/Dockerfile` against `aci/image/build`: built for real, by the builder of the same Docker Engine. Nothing of
//! this reaches a registry: the base is a tree of Debian under the name that the Dockerfile asks for, with the packages
//! that will be installed in a folder of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use enmesh::base::exec;

use crate::docker::{Docker, IMAGE, envoy};
use crate::field::outside;
use crate::tree;

/// What is fetched besides: packages, once.
const LIMIT: Duration = Duration::from_secs(300);
/// The image of the Dockerfile.
const OTHER: &str = "by-dockerfile";
/// Puts packages into a folder `archive` of the tree `$1`, as a repository, and makes it the tree's only one.
const FETCH: &str = r#"set -eu
APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get --yes --quiet --no-install-recommends --download-only install PACKAGES >/dev/null
mkdir "$1/archive"
mv "$1"/var/cache/apt/archives/*.deb "$1/archive/"
cd "$1/archive"
for package in *.deb; do
    dpkg-deb --field "$package"
    printf 'Filename: ./%s\nSize: %s\nSHA256: %s\n\n' \
        "$package" "$(stat -c %s "$package")" "$(sha256sum "$package" | cut -d ' ' -f 1)"
done >Packages
rm -rf "$1/etc/apt/sources.list" "$1"/etc/apt/sources.list.d/*
echo 'deb [trusted=yes] file:/archive ./' >"$1/etc/apt/sources.list"
"#;
/// Everything about an image that the other is to have as well, one line each.
const LOOK: &str = r#"set -eu
dpkg-query --show --showformat 'package ${Package} ${Version}\n'
getent passwd envoy | cut -d : -f 1,2,5-
id -nG envoy
stat -c '%n %A %U %G %s' /usr/local/bin/* /usr/sbin/nft /etc/ssl/certs/ca-certificates.crt
echo "lists: $(find /var/lib/apt/lists -type f -size +0 2>/dev/null | wc -l)"
enmesh --version
"#;

/// The base's name, and what is installed on it.
fn said_by(dockerfile: &str) -> (String, String) {
    let base = dockerfile.lines().find_map(|line| line.strip_prefix("FROM ")).unwrap();
    let packages = dockerfile.lines().find_map(|line| line.split_once("--no-install-recommends ")).unwrap().1;
    (base.to_owned(), packages.trim_end_matches('\\').trim().to_owned())
}

/// An archive of the base, made in `folder`.
fn base(folder: &Path, packages: &str) -> PathBuf {
    let (hook, archive) = (folder.join("fetch"), folder.join("base.tar"));
    fs::write(&hook, FETCH.replace("PACKAGES", packages)).unwrap();
    let run = format!("sh {} \"$1\"", hook.display());
    let release = tree::release();
    let mut arguments = ["--quiet", "--variant=minbase", "--customize-hook"].map(str::to_owned).to_vec();
    arguments.extend([run, release.clone(), archive.display().to_string()]);
    arguments.extend(tree::sources(&release));
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let output = exec::run(&exec::find("mmdebstrap").unwrap(), &arguments, b"", LIMIT).unwrap();
    assert!(output.status.success(), "{}", output.stderr);
    archive
}

/// What is to be the same.
fn look(docker: &Docker, image: &str) -> BTreeSet<String> {
    let mut found: BTreeSet<String> =
        docker.run(&["run", "--rm", image, "sh", "-c", LOOK]).lines().map(str::to_owned).collect();
    let config =
        docker.run(&["inspect", "--format", "{{json .Config.Cmd}} {{json .Config.Entrypoint}}", image]);
    found.insert(format!("command {config}"));
    found.insert(docker.run(&[
        "inspect",
        "--format",
        "{{.Os}}/{{.Architecture}} user {{.Config.User}}",
        image,
    ]));
    found
}

#[test]
fn the_dockerfile_makes_the_image_of_the_script() {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR"));
    let dockerfile = repository.join("aci/image/Dockerfile");
    let (name, packages) = said_by(&fs::read_to_string(&dockerfile).unwrap());
    let (_name, outside) = outside();
    let docker = Docker::start(outside, env!("CARGO_BIN_EXE_enmesh").into());

    let archive = base(&docker.at(""), &packages);
    docker.run(&["import", "--platform", "linux/amd64", archive.to_str().unwrap(), &name]);
    let context = docker.at("context");
    fs::create_dir(&context).unwrap();
    for (program, name) in [(docker.enmesh.clone(), "enmesh"), (envoy(), "envoy")] {
        fs::copy(program, context.join(name)).unwrap();
        // The mode is the Dockerfile's business.
        fs::set_permissions(context.join(name), fs::Permissions::from_mode(0o644)).unwrap();
    }
    let (file, context) = (dockerfile.to_str().unwrap(), context.to_str().unwrap());
    docker.run(&["build", "-f", file, "--platform", "linux/amd64", "-t", OTHER, context]);

    let (script, other) = (look(&docker, IMAGE), look(&docker, OTHER));
    let only = |one: &BTreeSet<String>, two: &BTreeSet<String>| -> Vec<String> {
        one.difference(two).cloned().collect()
    };
    let differ = BTreeMap::from([("script", only(&script, &other)), ("Dockerfile", only(&other, &script))]);
    assert!(differ.values().all(Vec::is_empty), "{differ:#?}");
    // What both have is what it has to be.
    for line in ["command [\"enmesh\",\"run\"] null", "linux/amd64 user", "lists: 0"] {
        assert!(script.contains(line), "{line}: {script:#?}");
    }
    assert!(script.iter().any(|line| line.starts_with("package nftables ")), "{script:#?}");
}
