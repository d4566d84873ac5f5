//! How service ids become unit names, and both become D-Bus object paths.

/// What every sidecar's unit name starts with.
const PREFIX: &str = "envoy@";
/// What it ends with.
const SUFFIX: &str = ".service";
/// The folder of unit objects on the bus.
pub const UNIT_OBJECTS: &str = "/org/freedesktop/systemd1/unit/";

/// A service id as a unit's instance name (systemd.unit(5), "String Escaping for Inclusion in Unit
/// Names"): `/` becomes `-`; everything but letters, digits, `:`, `_` and `.` becomes `\x2d`; so
/// does a dot at the start.
pub fn escape(id: &str) -> String {
    let mut text = String::with_capacity(id.len());
    for (position, byte) in id.bytes().enumerate() {
        match byte {
            b'/' => text.push('-'),
            b'.' if position > 0 => text.push('.'),
            b':' | b'_' => text.push(char::from(byte)),
            byte if byte.is_ascii_alphanumeric() => text.push(char::from(byte)),
            byte => text.push_str(&format!("\\x{byte:02x}")),
        }
    }
    text
}

/// The reverse of [`escape`]; `None` when it is not an escaped text.
pub fn unescape(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let tail = rest.get(first.len_utf8()..)?;
        rest = match first {
            '-' => {
                bytes.push(b'/');
                tail
            }
            '\\' => {
                let digits = tail.strip_prefix('x')?;
                bytes.push(hex(digits)?);
                digits.get(2..)?
            }
            other => {
                bytes.extend_from_slice(other.encode_utf8(&mut [0; 4]).as_bytes());
                tail
            }
        };
    }
    String::from_utf8(bytes).ok()
}

/// The unit of a sidecar: `my-api` is `envoy@my\x2dapi.service`.
pub fn unit(id: &str) -> String {
    format!("{PREFIX}{}{SUFFIX}", escape(id))
}

/// The service id of a sidecar's unit; `None` for other units and for the template itself.
pub fn instance(unit: &str) -> Option<String> {
    let escaped = unit.strip_prefix(PREFIX)?.strip_suffix(SUFFIX)?;
    (!escaped.is_empty()).then(|| unescape(escaped)).flatten()
}

/// The service id of a sidecar's object on the bus, where `_40` stands for `@` and so on.
pub fn instance_of_object(path: &str) -> Option<String> {
    let label = path.strip_prefix(UNIT_OBJECTS)?;
    // Signals of every unit of the host come by here: most are turned down by this look alone.
    if !label.starts_with("envoy_40") {
        return None;
    }
    let mut name = String::with_capacity(label.len());
    let mut rest = label;
    while let Some((plain, escaped)) = rest.split_once('_') {
        name.push_str(plain);
        name.push(char::from(hex(escaped)?));
        rest = escaped.get(2..)?;
    }
    name.push_str(rest);
    instance(&name)
}

/// The byte that the first two characters spell.
fn hex(text: &str) -> Option<u8> {
    let digits = text.get(..2)?;
    digits.bytes().all(|byte| byte.is_ascii_hexdigit()).then_some(())?;
    u8::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Recorded from `systemd-escape --template=envoy@.service -- ID` of systemd 252.
    const RECORDED: [(&str, &str); 12] = [
        ("api", "envoy@api.service"),
        ("A0", "envoy@A0.service"),
        ("my-api", r"envoy@my\x2dapi.service"),
        ("a.b", "envoy@a.b.service"),
        (".hidden", r"envoy@\x2ehidden.service"),
        ("with space", r"envoy@with\x20space.service"),
        ("\u{fc}n\u{ef}", r"envoy@\xc3\xbcn\xc3\xaf.service"),
        ("a/b", "envoy@a-b.service"),
        ("a@b", r"envoy@a\x40b.service"),
        ("a:b_c", "envoy@a:b_c.service"),
        ("-x", r"envoy@\x2dx.service"),
        (r"x\y", r"envoy@x\x5cy.service"),
    ];

    #[test]
    fn unit_names_are_those_of_systemd_escape() {
        for (id, expected) in RECORDED {
            assert_eq!(unit(id), expected);
            assert_eq!(instance(expected).as_deref(), Some(id));
        }
    }

    #[test]
    fn objects_on_the_bus_lead_back_to_the_service() {
        // Recorded from the bus of systemd 252.
        let path = "/org/freedesktop/systemd1/unit/envoy_40my_5cx2dapi_2eservice";
        assert_eq!(instance_of_object(path).as_deref(), Some("my-api"));
        let other = "/org/freedesktop/systemd1/unit/dbus_2eservice";
        assert_eq!(instance_of_object(other), None);
        assert_eq!(instance_of_object("/org/freedesktop/systemd1/unit/envoy_40x_zz"), None);
    }

    #[test]
    fn what_is_no_sidecar_is_none() {
        for name in
            ["envoy@.service", "envoy.service", "envoy@a.socket", r"envoy@\x2.service", r"envoy@\y.service"]
        {
            assert_eq!(instance(name), None, "{name}");
        }
    }

    proptest! {
        #[test]
        fn every_id_comes_back(id in "\\PC{1,40}") {
            prop_assert_eq!(instance(&unit(&id)), Some(id));
        }

        #[test]
        fn no_unit_name_is_too_much(name in "envoy@\\PC{0,20}\\.service", path in "envoy_40\\PC{0,20}") {
            let _ = instance(&name);
            let _ = instance_of_object(&format!("{UNIT_OBJECTS}{path}"));
        }
    }
}
