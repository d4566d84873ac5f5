//! Whatever stands where a file should be: a coded error, at once.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::time::{Duration, Instant};

use enmesh::config::load_path;

use super::{Tree, only, service_errors};

/// Far more than any of these takes on a slow, busy machine without optimisation.
const AT_ONCE: Duration = Duration::from_secs(10);

fn at_once<T>(work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    assert!(start.elapsed() < AT_ONCE, "took {:?}", start.elapsed());
    result
}

#[test]
fn bytes_that_are_no_text() {
    for file in ["a.toml", "a.json"] {
        let cases: [(&[u8], &str, usize, usize); 5] = [
            (b"\xef\xbb\xbfname = 'a'", "ENM-C004", 1, 1),
            (b"\xff\xfen\0a\0", "ENM-C004", 1, 1),
            (b"# x\n# \xc3\xa4\xff", "ENM-C004", 2, 4),
            (b"# x\n  \0", "ENM-C004", 2, 3),
            (&[0; 5000], "ENM-C004", 1, 1),
        ];
        for (bytes, code, line, column) in cases {
            assert_eq!(only(&service_errors(file, bytes)), (code, line, column), "{bytes:?}");
        }
        for bytes in [b"\x7fELF\x02\x01\x01".as_slice(), b"%PDF-1.7", b"\x1b[2J"] {
            let errors = service_errors(file, bytes);
            assert_eq!((only(&errors).0, only(&errors).1), ("ENM-C005", 1), "{bytes:?}");
            assert!(!errors[0].to_string().contains(char::is_control), "{:?}", errors[0].to_string());
        }
    }
}

#[test]
fn nothing_in_the_file() {
    assert_eq!(only(&service_errors("a.toml", "")).0, "ENM-C012");
    assert_eq!(only(&service_errors("a.json", " \n")).0, "ENM-C006");
    let tree = Tree::new();
    assert!(tree.write("etc/enmesh/enmesh.toml", "").load().host_ok, "an empty host file means the defaults");
    tree.write("srv/consul/service-config.json", "");
    assert_eq!(only(&tree.load().errors).0, "ENM-C006");
}

#[test]
fn control_characters_however_they_are_written() {
    for (file, text) in [
        ("a.toml", "name = 'a'\ntags = [\"x\\u0000\"]"),
        ("a.toml", "name = 'a'\nproxy.config.x = \"\\u001b[2J\""),
        ("a.json", "{\"name\": \"a\",\n\"meta\": {\"k\": \"\\u0007\"}}"),
        ("a.json", "{\"name\": \"a\",\n\"meta\": {\"\\u0000\": \"\"}}"),
    ] {
        let errors = service_errors(file, text);
        assert_eq!((only(&errors).0, only(&errors).1), ("ENM-C013", 2), "{text}");
        assert!(!errors[0].message.contains(char::is_control));
    }
}

#[test]
fn too_much() {
    for file in ["a.toml", "a.json"] {
        let big = vec![b' '; 10 * 1024 * 1024];
        assert_eq!(only(&at_once(|| service_errors(file, &big))).0, "ENM-C003");
        assert_eq!(only(&at_once(|| service_errors(file, vec![b'['; 1024 * 1024]))).0, "ENM-C005");
        assert_eq!(only(&at_once(|| service_errors(file, vec![b'{'; 1024 * 1024]))).0, "ENM-C005");
    }
    let nested = format!("name = 'a'\nproxy.config.x = {}1{}", "[".repeat(5000), "]".repeat(5000));
    assert_eq!(only(&at_once(|| service_errors("a.toml", nested))).0, "ENM-C005");
    let dotted = format!("name = 'a'\nproxy.config{} = 1", ".a".repeat(400_000));
    assert_eq!(only(&at_once(|| service_errors("a.toml", dotted))).0, "ENM-C005");
    let header = format!("name = 'a'\n[proxy.config{}]", ".a".repeat(400_000));
    assert_eq!(only(&at_once(|| service_errors("a.toml", header))).0, "ENM-C005");
    let inline = format!("name = 'a'\nproxy.config.x = {}{}", "{ a = ".repeat(5000), "1".repeat(5000));
    assert_eq!(only(&at_once(|| service_errors("a.toml", inline))).0, "ENM-C005");
    let nested = format!("{{\"name\": \"a\", \"proxy\": {}", "{\"a\":[".repeat(5000));
    assert_eq!(only(&at_once(|| service_errors("a.json", nested))).0, "ENM-C005");
}

#[test]
fn ten_thousand_of_everything() {
    let tags: Vec<String> = (0..10_000).map(|i| format!("'tag{i}'")).collect();
    let tree = Tree::new();
    let good = format!("name = 'a'\ntags = [{}]\n", tags.join(","));
    assert_eq!(at_once(|| tree.service("a.toml", good).load()).services[0].tags.len(), 10_000);

    let same = "[[upstream]]\nname = 'b'\nlocal_port = 1\n".repeat(10_000);
    let errors = at_once(|| service_errors("a.toml", format!("name = 'a'\n{same}")));
    assert_eq!(errors.len(), 51, "the rest is counted");
    assert_eq!(errors[50].code, "ENM-C085");

    let unknown: Vec<String> = (0..10_000).map(|i| format!("\"connect-servic{i}\": 1")).collect();
    let legacy = format!(
        "{{\"annotations\": {{\"consul.hashicorp.com/connect-service\": \"w\", {}}}}}",
        unknown.join(",")
    );
    let tree = Tree::new();
    let config = at_once(|| tree.write("srv/consul/service-config.json", legacy).load());
    assert_eq!((config.services.len(), config.warnings.len()), (1, 51));
}

#[test]
fn a_long_line_of_slips() {
    let keys: Vec<String> = (0..60_000).map(|i| format!("\"k{i}\":1")).collect();
    let errors = at_once(|| service_errors("a.json", format!("{{\"name\":\"a\",{}}}", keys.join(","))));
    assert_eq!(only(&errors).0, "ENM-C010");
    let slips = "= ".repeat(400_000);
    assert_eq!(only(&at_once(|| service_errors("a.toml", slips))).0, "ENM-C005");
}

#[test]
fn keys_twice() {
    assert_eq!(only(&service_errors("a.json", "{\"name\": \"a\",\n \"name\": \"b\"}")), ("ENM-C007", 2, 2));
    assert_eq!(only(&service_errors("a.toml", "name = 'a'\nname = 'b'\n")), ("ENM-C005", 2, 1));
}

#[test]
fn values_that_only_toml_has() {
    for value in ["1979-05-27", "inf", "nan", "99999999999999999999"] {
        let errors = service_errors("a.toml", format!("name = 'a'\n[proxy.config]\nx = {value}\n"));
        assert_eq!(only(&errors), ("ENM-C011", 3, 5), "{value}");
    }
}

#[test]
fn what_is_not_a_file() {
    let tree = Tree::new();
    tree.service("ok.toml", "name = 'ok'\n");
    let services = tree.path("etc/enmesh/services");
    fs::create_dir(services.join("folder.toml")).unwrap();
    nix::unistd::mkfifo(&services.join("fifo.toml"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(services.join("socket.toml")).unwrap();
    symlink("/dev/zero", services.join("zero.toml")).unwrap();
    symlink("loop.toml", services.join("loop.toml")).unwrap();
    symlink("nowhere", services.join("dangling.toml")).unwrap();
    symlink("ok.toml.real", services.join("link.json")).unwrap();
    fs::write(services.join("ok.toml.real"), r#"{"name": "linked", "capture": {"scope": "user:x"}}"#)
        .unwrap();
    let config = at_once(|| tree.load());
    let said: Vec<_> = config
        .errors
        .iter()
        .map(|e| (e.place.as_ref().unwrap().file.file_name().unwrap().to_str().unwrap().to_owned(), e.code))
        .collect();
    let expected = [
        ("dangling.toml", "ENM-C001"),
        ("fifo.toml", "ENM-C002"),
        ("folder.toml", "ENM-C002"),
        ("loop.toml", "ENM-C001"),
        ("socket.toml", "ENM-C002"),
        ("zero.toml", "ENM-C002"),
    ];
    assert_eq!(said, expected.map(|(file, code)| (file.to_owned(), code)));
    assert_eq!(config.services.len(), 2, "a link to a file is a file");
    for file in ["fifo.toml", "zero.toml", "loop.toml"] {
        assert_eq!(at_once(|| load_path(&services.join(file))).errors.len(), 1);
    }
}

#[test]
fn folders_that_are_no_folders() {
    let tree = Tree::new();
    let config = tree.write("etc/enmesh/services", "x").write("etc/enmesh/enmesh.d", "x").load();
    let codes: Vec<_> = config.errors.iter().map(|e| e.code).collect();
    assert_eq!((codes, config.host_ok), (vec!["ENM-C001", "ENM-C001"], false));
}

#[test]
fn a_file_that_may_not_be_read() {
    let tree = Tree::new();
    tree.service("a.toml", "name = 'a'\n").service("b.toml", "name = 'b'\n");
    fs::set_permissions(tree.path(""), Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(tree.path("etc/enmesh/services/a.toml"), Permissions::from_mode(0o000)).unwrap();
    let read = || {
        // Root may read everything; as far as files go, this one thread is nobody from here on.
        nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65534));
        tree.load()
    };
    let config = std::thread::scope(|scope| scope.spawn(read).join().unwrap());
    assert_eq!(only(&config.errors).0, "ENM-C001");
    assert_eq!(config.errors[0].class.exit_code(), 77);
    assert_eq!(config.services.len(), 1);
}

#[test]
fn messages_are_fit_for_a_terminal() {
    let long = "x".repeat(500_000);
    for text in [
        format!("name = '{long}'"),
        format!("name = 'a'\n{long} = 1"),
        format!("name = 'a'\n[[check]]\ninterval = '1s'\nhttp = '{long}'"),
        "name = 'a'\n\"x\\ny\" = 1".to_owned(),
    ] {
        let message = at_once(|| service_errors("a.toml", text))[0].message.clone();
        assert!(message.len() < 1000 && !message.contains(char::is_control), "{message}");
    }
    let message = service_errors("a.toml", format!("name = '{long}'"))[0].message.clone();
    assert!(message.ends_with("with a letter or digit at both ends"), "the reason is still there: {message}");
}
