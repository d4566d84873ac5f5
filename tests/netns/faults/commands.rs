//! The commands themselves: what they answer, with which status, and that looking touches nothing.

use crate::host_bed::{API, API_FILE, Bed, WEB_FILE};

const KINDS: [&str; 6] = ["registration", "nft", "bootstrap", "xds", "unit", "dns"];

#[test]
fn plan_tells_changes_by_its_status_and_touches_nothing() {
    let mut bed = Bed::new();
    let before = (bed.files(), bed.nft(&["list", "ruleset"], "").unwrap());
    for arguments in [&["plan"][..], &["plan", "--json"], &["plan", "--exit-code"]] {
        let said = bed.run(arguments);
        assert_eq!(
            said.code,
            Some(if arguments.len() == 2 && arguments[1] == "--exit-code" { 2 } else { 0 }),
            "{said:?}"
        );
    }
    assert_eq!((bed.files(), bed.nft(&["list", "ruleset"], "").unwrap()), before, "on a fresh host");
    bed.start().await_ready();
    let before = (bed.files(), bed.rules(), bed.envoys());
    let said = bed.run(&["plan", "--exit-code"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    bed.write(API_FILE, API.replace("8080", "8090"));
    // The daemon is quick; it is stopped so that there is something left to do.
    bed.kill_daemon();
    let changed = bed.run(&["plan", "--exit-code", "--json"]);
    drop(before);
    assert!(matches!(changed.code, Some(0 | 2)), "{changed:?}");
    bed.write(API_FILE, API.replace("8080", "8091"));
    let before = (bed.files(), bed.rules(), bed.envoys());
    let changed = bed.run(&["plan", "--exit-code", "--json"]);
    assert_eq!(changed.code, Some(2), "{changed:?}");
    assert!(!changed.json()["changes"].as_array().unwrap().is_empty());
    assert_eq!((bed.files(), bed.rules(), bed.envoys()), before);
    let said = bed.run(&["apply"]);
    assert_eq!(said.code, Some(0), "{said:?}");
    let said = bed.run(&["plan", "--exit-code"]);
    assert_eq!(said.code, Some(0), "what was applied differs no more: {said:?}");
}

/// Row 77 of docs/traffic.md.
#[test]
fn render_needs_no_privilege_and_touches_nothing() {
    let bed = Bed::new();
    let before = bed.files();
    for kind in KINDS {
        let said = bed.run_as(65534, &["render", kind]);
        assert_eq!(said.code, Some(0), "{kind}: {said:?}");
        assert!(!said.out.is_empty(), "{kind}");
        assert_eq!(said.out, bed.run(&["render", kind]).out, "{kind}: the same for root");
        bed.run_as(65534, &["render", kind, "--json"]).json();
    }
    let said = bed.run_as(65534, &["render", "xds", "nobody"]);
    assert_eq!(said.code, Some(65), "{said:?}");
    assert!(said.err.contains("ENM-D007"), "{said:?}");
    assert_eq!(bed.files(), before);
    let nft = bed.run(&["render", "nft"]).out;
    bed.nft(&["--check", "-f", "-"], &nft).unwrap();
}

#[test]
fn check_names_file_line_and_column() {
    let bed = Bed::new();
    assert_eq!(bed.run_as(65534, &["check"]).code, Some(0));
    bed.write(WEB_FILE, "name = \"web\"\n\nprot = 8081\n");
    let said = bed.run_as(65534, &["check"]);
    assert_eq!(said.code, Some(65), "{said:?}");
    let place = format!("{}:3:1: ENM-C010", bed.path(WEB_FILE).display());
    assert!(said.err.contains(&place) && said.err.contains("port"), "{said:?}");
    let json = bed.run_as(65534, &["check", "--json"]).json();
    assert_eq!(json["errors"][0]["code"], "ENM-C010", "{json:#}");
    assert_eq!((json["ok"].as_bool(), json["errors"][0]["place"]["line"].as_u64()), (Some(false), Some(3)));
}

#[test]
fn without_a_daemon_status_says_so_with_69() {
    let bed = Bed::new();
    for arguments in [&["status"][..], &["status", "--json"]] {
        let said = bed.run(arguments);
        assert_eq!(said.code, Some(69), "{said:?}");
        assert!((said.out + &said.err).contains("ENM-D005"));
    }
    let said = bed.run(&["wait", "api", "--timeout", "100ms"]);
    assert!(said.err.contains("hint") && said.code != Some(0), "{said:?}");
}

/// Whoever writes a file and then waits means that file, however quick he is.
#[test]
fn wait_is_for_what_is_written_and_not_for_what_was_live_before() {
    let mut bed = Bed::new();
    let web = std::fs::read(bed.path(WEB_FILE)).unwrap();
    bed.start().await_ready();
    for round in 0..10 {
        bed.remove(WEB_FILE);
        let said = bed.run(&["wait"]);
        assert_eq!(said.code, Some(0), "{said:?}");
        assert!(bed.status()["services"].get("web").is_none(), "round {round}: it was removed");
        bed.write(WEB_FILE, &web);
        let said = bed.run(&["wait"]);
        assert_eq!(said.code, Some(0), "{said:?}");
        assert_eq!(bed.status()["services"]["web"]["phase"], "live", "round {round}");
    }
}

#[test]
fn every_command_answers_with_one_json_document() {
    let mut bed = Bed::new();
    let every = |bed: &Bed, down: bool| {
        let mut commands: Vec<Vec<&str>> = [
            &["plan"][..],
            &["check"],
            &["status"],
            &["apply"],
            &["wait", "api", "--timeout", "2s"],
            &["ca", "init"],
            &["render", "iptables"],
        ]
        .iter()
        .map(|arguments| arguments.to_vec())
        .collect();
        commands.extend(KINDS.iter().map(|kind| vec!["render", kind]));
        if down {
            commands.push(vec!["down", "nobody"]);
            commands.push(vec!["down", "api"]);
            commands.push(vec!["down"]);
        }
        for mut arguments in commands {
            arguments.push("--json");
            let said = bed.run(&arguments);
            let json = said.json();
            assert!(json.is_object(), "{arguments:?}: {said:?}");
            assert!(said.code.is_some_and(|code| [0, 1, 64, 65, 69, 77].contains(&code)), "{said:?}");
        }
    };
    every(&bed, false);
    bed.start().await_ready();
    every(&bed, true);
}

#[test]
fn a_slip_on_the_command_line_is_64() {
    let bed = Bed::new();
    for arguments in [&["nonsense"][..], &["render"], &["render", "nonsense"], &["status", "--nonsense"], &[]]
    {
        let said = bed.run(arguments);
        assert_eq!(said.code, Some(64), "{arguments:?}: {said:?}");
        assert!(!said.err.is_empty());
    }
}
