use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::plan::Callers;

const PATH: &str = "/etc/enmesh/peers.toml";

fn good(text: &str) -> Peers {
    parse(Path::new(PATH), text).unwrap()
}

/// Code, line and column, message, hint.
fn bad(text: &str) -> (&'static str, (usize, usize), String, String) {
    let fault = Fault::from(parse(Path::new(PATH), text).unwrap_err());
    let place = fault.place.unwrap();
    assert_eq!(place.file, Path::new(PATH));
    (fault.code, (place.line, place.column), fault.message, fault.hint)
}

fn packaged(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(path)
}

#[test]
fn the_example_is_in_order_and_says_what_it_shows() {
    let peers = good(&fs::read_to_string(packaged("examples/peers.toml")).unwrap());
    let view = peers.into_view("td.consul");
    assert_eq!(view.datacenter, "dc1");
    let api = &view.services[&"api".parse().unwrap()];
    assert_eq!(api.virtual_ips.iter().map(ToString::to_string).collect::<Vec<_>>(), ["240.0.0.5"]);
    assert_eq!(api.callers, Callers::only(["web".parse().unwrap()]));
    let instances: Vec<_> =
        api.instances.iter().map(|i| (i.address.to_string(), i.port, i.service_port)).collect();
    assert_eq!(instances, [("10.0.0.2".to_owned(), 21000, Some(8080)), ("10.0.0.3".to_owned(), 21000, None)]);
    let web = &view.services[&"web".parse().unwrap()];
    assert!(web.callers == Callers::anybody() && web.virtual_ips.is_empty());
    assert_eq!(view.sni(&"api".parse().unwrap()), "api.default.dc1.internal.td.consul");
}

#[test]
fn the_shipped_schema_is_that_of_the_types() {
    let schema = serde_json::to_string_pretty(&schemars::schema_for!(PeersFile)).unwrap() + "\n";
    let path = packaged("schema/peers.schema.json");
    if std::env::var_os("ENMESH_BLESS").is_some() {
        fs::write(&path, &schema).unwrap();
    }
    let shipped = fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(shipped, schema, "the types changed: run the test with ENMESH_BLESS=1 and commit the schema");
}

#[test]
fn no_file_is_an_empty_mesh_and_defaults_hold() {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::new(dir.path());
    assert_eq!(load(&root, Path::new(PATH)).unwrap(), Peers::default());
    assert_eq!(good(""), Peers::default());
    let peers = good("[[service]]\nname = \"db\"");
    assert_eq!(
        peers.services[&"db".parse().unwrap()],
        MeshService::default(),
        "nobody may call, nowhere it runs"
    );
}

#[test]
fn files_that_cannot_be_one_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let root = Root::new(dir.path());
    let path = root.join(PATH);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, vec![b'#'; SIZE_LIMIT as usize + 1]).unwrap();
    assert_eq!(load(&root, Path::new(PATH)).unwrap_err().code, "ENM-M002");
    fs::write(&path, b"name = \"\xff\"").unwrap();
    assert_eq!(load(&root, Path::new(PATH)).unwrap_err().code, "ENM-M001");
    fs::remove_file(&path).unwrap();
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let fault = load(&root, Path::new(PATH)).unwrap_err();
    assert_eq!((fault.code, fault.class.exit_code()), ("ENM-M001", 65));
    assert_eq!(fault.place.unwrap().file, path, "the file is named with the root in front");
}

#[test]
fn errors_name_line_column_and_remedy() {
    let (code, at, message, hint) = bad("[[service]]\nname = \"api\"\nalow = [\"web\"]\n");
    assert_eq!((code, at), ("ENM-M004", (3, 1)));
    assert!(message.contains("alow") && hint.contains("`allow`"), "{message} {hint}");

    let (code, at, _, hint) = bad(
        "[[service]]\nname = \"api\"\n[[service.instance]]\naddress = \"10.0.0.1\"\nport = 1\ncolour = 1\n",
    );
    assert_eq!((code, at), ("ENM-M004", (6, 1)));
    assert!(hint.contains("service_port"), "{hint}");

    let (code, at, ..) = bad("datacenter = \"dc1\"\n[[service]\n");
    assert_eq!((code, at.0), ("ENM-M003", 2));

    let (code, at, message, _) = bad("# ü\n[[service]]\nname = \"a b\"\n");
    assert_eq!((code, at), ("ENM-M005", (3, 8)));
    assert!(message.contains("not a service name"), "{message}");

    let instance = "[[service]]\nname = \"api\"\n[[service.instance]]\naddress = \"10.0.0.1\"\nport = ";
    assert_eq!(bad(&format!("{instance}0\n")).0, "ENM-M005");
    assert_eq!(bad(&format!("{instance}70000\n")).1, (5, 8));
    assert_eq!(bad("trust_domain = \"Not Lower\"\n").0, "ENM-M005");
    assert_eq!(bad("[[service]]\nallow = []\n").0, "ENM-M005", "a name is required");
    let (_, at, message, _) = bad("[[service]]\nname = \"a\"\nallow = [\"web\", \"**\"]\n");
    assert_eq!(at, (3, 9), "a list is pointed at as a whole");
    assert!(message.contains("\"**\""), "{message}");
}

#[test]
fn nothing_may_be_there_twice() {
    let (code, at, message, _) = bad("[[service]]\nname = \"api\"\n\n[[service]]\nname = \"API\"\n");
    assert_eq!((code, at), ("ENM-M006", (5, 8)));
    assert!(message.contains("line 2"), "{message}");

    let instance = "[[service.instance]]\naddress = \"10.0.0.1\"\nport = 1\n";
    let mapped = "[[service.instance]]\naddress = \"::ffff:10.0.0.1\"\nport = 1\n";
    let (code, at, message, _) = bad(&format!("[[service]]\nname = \"a\"\n{instance}{mapped}"));
    assert_eq!((code, at.0), ("ENM-M007", 6));
    assert!(message.contains("10.0.0.1 port 1") && message.contains("line 3"), "{message}");
    assert_eq!(
        bad(&format!("[[service]]\nname = \"a\"\n{instance}[[service]]\nname = \"b\"\n{instance}")).0,
        "ENM-M007"
    );

    let (code, at, ..) = bad(
        "[[service]]\nname = \"a\"\nvirtual_ips = [\"240.0.0.1\"]\n[[service]]\nname = \"b\"\nvirtual_ips = [\"240.0.0.2\", \"240.0.0.1\"]\n",
    );
    assert_eq!((code, at), ("ENM-M008", (6, 29)));

    let (code, at, message, _) =
        bad(&format!("[[service]]\nname = \"a\"\nvirtual_ips = [\"10.0.0.1\"]\n{instance}"));
    assert_eq!((code, at), ("ENM-M009", (3, 16)));
    assert!(message.contains("line 4"), "{message}");
}

#[test]
fn addresses_must_be_those_of_hosts() {
    for address in ["0.0.0.0", "::", "224.0.0.1", "255.255.255.255", "ff02::1", "127.0.0.1", "::1"] {
        let text = format!("[[service]]\nname = \"a\"\nvirtual_ips = [\"{address}\"]\n");
        assert_eq!(bad(&text).0, "ENM-M009", "{address}");
    }
    for address in ["0.0.0.0", "224.0.0.1"] {
        let text =
            format!("[[service]]\nname = \"a\"\n[[service.instance]]\naddress = \"{address}\"\nport = 1\n");
        assert_eq!(bad(&text).0, "ENM-M009", "{address}");
    }
}

#[test]
fn trust_domains_fit_into_identities_and_server_names() {
    for fine in ["11111111-2222-3333-4444-555555555555.consul", "a", "lab_1.example"] {
        assert!(fine.parse::<TrustDomain>().is_ok(), "{fine}");
    }
    for wrong in ["", ".", "a..b", "A.consul", "a/b", "a:1", "ü", "a b", &"a".repeat(64), &"a.".repeat(80)] {
        assert!(wrong.parse::<TrustDomain>().is_err(), "{wrong}");
    }
}

proptest! {
    #[test]
    fn no_text_makes_the_parser_panic(text in ".{0,200}") {
        let _ = parse(Path::new(PATH), &text);
    }

    /// Pieces of real files in any order get much further than random text does.
    #[test]
    fn no_shuffled_file_makes_the_parser_panic(pieces in prop::collection::vec(prop::sample::select(vec![
        "[[service]]\n", "[[service.instance]]\n", "name = \"a\"\n", "name = \"b\"\n", "address = \"10.0.0.1\"\n",
        "port = 1\n", "port = -1\n", "virtual_ips = [\"240.0.0.1\", \"::1\"]\n", "allow = [\"*\", \"x\"]\n",
        "trust_domain = \"t.consul\"\n", "datacenter = 7\n", "# \u{1F980}\n", "x.y.z = {}\n", "\r\n", "\"\"\"", "= \n",
    ]), 0..24)) {
        let text = pieces.concat();
        if let Err(error) = parse(Path::new(PATH), &text) {
            let fault = Fault::from(error);
            let place = fault.place.unwrap();
            prop_assert!(place.line <= text.lines().count() + 1);
            prop_assert!(!fault.hint.is_empty());
        }
    }
}
