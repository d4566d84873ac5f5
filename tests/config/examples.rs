//! What is shipped beside the program says the truth about it.

use std::path::{Path, PathBuf};

use enmesh::config::{HostConfig, ServiceConfig, load_path, schema_host, schema_service};

fn packaging(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging").join(path)
}

#[test]
fn the_service_example_shows_the_defaults() {
    let config = load_path(&packaging("examples/service.toml"));
    assert_eq!((&config.errors, &config.warnings), (&vec![], &vec![]));
    let mut shown = config.services[0].clone();
    assert_eq!(shown.checks.len(), 1);
    assert_eq!(shown.upstreams.len(), 1);
    shown.checks.clear();
    shown.upstreams.clear();
    assert_eq!(shown.id.take().unwrap().as_str(), shown.name.as_str());
    shown.source = PathBuf::new();
    let smallest: ServiceConfig = toml::from_str("name = 'api'\nport = 8080").unwrap();
    assert_eq!(shown, smallest);
}

#[test]
fn the_host_example_shows_the_defaults() {
    let config = load_path(&packaging("examples/enmesh.toml"));
    assert_eq!((&config.errors, &config.warnings), (&vec![], &vec![]));
    assert_eq!(config.host, HostConfig::default());
}

#[test]
fn the_examples_leave_out_no_key() {
    for (file, schema) in [("service.toml", schema_service()), ("enmesh.toml", schema_host())] {
        let text = std::fs::read_to_string(packaging(&format!("examples/{file}"))).unwrap();
        for key in schema["properties"].as_object().unwrap().keys() {
            assert!(text.contains(key.as_str()), "{file} says nothing of `{key}`");
        }
    }
}

#[test]
fn the_schemas_are_those_of_the_types() {
    for (file, schema) in [("service", schema_service()), ("host", schema_host())] {
        let path = packaging(&format!("schema/{file}.schema.json"));
        let text = format!("{}\n", serde_json::to_string_pretty(&schema).unwrap());
        if std::env::var_os("ENMESH_BLESS").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        let shipped = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(
            shipped == text,
            "{} is not what the types say; write it anew with: ENMESH_BLESS=1 cargo test --test config schemas",
            path.display()
        );
    }
}
