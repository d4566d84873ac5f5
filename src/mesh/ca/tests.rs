use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;

use x509_parser::parse_x509_certificate;

use proptest::prelude::*;

use super::*;
use crate::config::value::ServiceId;

const DAY: Duration = Duration::from_secs(24 * 3600);
const TTL: Duration = Duration::from_secs(72 * 3600);

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

fn identity(trust_domain: &str, service: &str) -> SpiffeId {
    SpiffeId {
        trust_domain: trust_domain.to_owned(),
        namespace: "default".to_owned(),
        datacenter: "dc1".to_owned(),
        service: service.to_owned(),
    }
}

fn lab() -> TrustDomain {
    "11111111-2222-3333-4444-555555555555.consul".parse().unwrap()
}

fn authority(folder: &Path) -> Authority {
    Authority::create(folder, Some(&lab()), false, now()).unwrap()
}

fn api() -> SpiffeId {
    identity(lab().as_str(), "api")
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

fn der(pem: &str) -> Vec<u8> {
    super::pem::certificates(pem).unwrap().remove(0)
}

/// The opinion of an implementation that shares nothing with ours.
fn webpki_accepts(credentials: &Credentials, at: SystemTime, usage: fn() -> webpki::KeyUsage) -> bool {
    use rustls_pki_types::{CertificateDer, UnixTime};
    let (leaf, root) = (der(&credentials.certificate_pem), der(&credentials.roots_pem));
    let (leaf, root) = (CertificateDer::from(leaf), CertificateDer::from(root));
    let anchors = [webpki::anchor_from_trusted_cert(&root).unwrap()];
    let leaf = webpki::EndEntityCert::try_from(&leaf).unwrap();
    let at = UnixTime::since_unix_epoch(at.duration_since(SystemTime::UNIX_EPOCH).unwrap());
    leaf.verify_for_usage(&[webpki::ring::ECDSA_P256_SHA256], &anchors, &[], at, usage(), None, None).is_ok()
}

#[test]
fn the_root_has_consuls_profile() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("ca");
    let ca = authority(&folder);
    assert_eq!(
        (mode(&folder), mode(&folder.join("root.pem")), mode(&folder.join("root.key"))),
        (0o755, 0o644, 0o600)
    );

    let bytes = der(ca.trust().pem());
    let (_, root) = parse_x509_certificate(&bytes).unwrap();
    assert!(root.subject().to_string().starts_with("CN=Consul CA "), "{}", root.subject());
    assert_eq!(root.subject(), root.issuer());
    assert_eq!(verify::uris(&root), ["spiffe://11111111-2222-3333-4444-555555555555.consul"]);
    let constraints = root.basic_constraints().unwrap().unwrap();
    assert!(constraints.critical && constraints.value.ca);
    let usage = root.key_usage().unwrap().unwrap().value;
    assert_eq!(usage.flags, 0b110_0000, "certificate and CRL signing and nothing else");
    assert_eq!(root.public_key().parsed().unwrap().key_size(), 256);
    root.verify_signature(None).unwrap();
    let (from, to) = ca.trust().validity();
    assert_eq!(now().duration_since(from).unwrap(), Duration::from_secs(60));
    assert_eq!(to.duration_since(now()).unwrap(), 3650 * DAY);
}

#[test]
fn a_leaf_has_consuls_profile() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority(dir.path());
    let leaf = ca.issue(&api(), TTL, now()).unwrap();
    assert!(leaf.key_pem.starts_with("-----BEGIN PRIVATE KEY-----"), "PKCS#8");
    let bytes = der(&leaf.certificate_pem);
    let (_, parsed) = parse_x509_certificate(&bytes).unwrap();
    assert_eq!(verify::uris(&parsed), [api().to_string()]);
    assert_eq!(parsed.subject_alternative_name().unwrap().unwrap().value.general_names.len(), 1);
    assert!(!parsed.is_ca());
    let usage = parsed.key_usage().unwrap().unwrap().value;
    assert!(
        usage.digital_signature()
            && usage.key_encipherment()
            && usage.data_encipherment()
            && usage.key_agreement()
    );
    assert!(!usage.key_cert_sign() && !usage.crl_sign());
    let extended = parsed.extended_key_usage().unwrap().unwrap().value;
    assert!(extended.client_auth && extended.server_auth && !extended.any);
    assert_eq!(verify::validity(&parsed), (leaf.not_before, leaf.not_after));
    assert_eq!(leaf.not_after.duration_since(now()).unwrap(), TTL);
    assert_eq!(now().duration_since(leaf.not_before).unwrap(), Duration::from_secs(60));
    assert!(parsed.raw_serial().len() == 16 && parsed.raw_serial()[0] < 0x80, "a positive number");
    let other = ca.issue(&api(), TTL, now()).unwrap();
    assert_ne!(
        parsed.raw_serial(),
        parse_x509_certificate(&der(&other.certificate_pem)).unwrap().1.raw_serial()
    );
}

#[test]
fn an_independent_implementation_takes_the_chain() {
    let dir = tempfile::tempdir().unwrap();
    let leaf = authority(dir.path()).issue(&api(), TTL, now()).unwrap();
    assert!(webpki_accepts(&leaf, now(), webpki::KeyUsage::client_auth));
    assert!(webpki_accepts(&leaf, now(), webpki::KeyUsage::server_auth));
    assert!(!webpki_accepts(&leaf, now() + TTL + DAY, webpki::KeyUsage::server_auth), "expired");
    let elsewhere = tempfile::tempdir().unwrap();
    let stranger = authority(elsewhere.path());
    let wrong = Credentials { roots_pem: stranger.trust().pem().to_owned(), ..leaf };
    assert!(
        !webpki_accepts(&wrong, now(), webpki::KeyUsage::client_auth),
        "another CA of the same trust domain"
    );
}

#[test]
fn verification_tells_what_is_wrong() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority(dir.path());
    let leaf = ca.issue(&api(), TTL, now()).unwrap();
    assert_eq!(verify(&leaf, &api(), now()), Ok(()));
    assert!(matches!(verify(&leaf, &identity(lab().as_str(), "web"), now()), Err(Unfit::Identity { .. })));
    assert!(matches!(verify(&leaf, &api(), now() + TTL + DAY), Err(Unfit::Expired(_))));
    assert!(matches!(verify(&leaf, &api(), now() - DAY), Err(Unfit::Early(_))));
    let other = ca.issue(&api(), TTL, now()).unwrap();
    let mixed = Credentials { key_pem: other.key_pem, ..leaf.clone() };
    assert_eq!(verify(&mixed, &api(), now()), Err(Unfit::Key));
    let root_as_leaf = Credentials { certificate_pem: leaf.roots_pem.clone(), ..leaf.clone() };
    assert!(matches!(verify(&root_as_leaf, &api(), now()), Err(Unfit::Identity { .. })));
    let empty = Credentials { certificate_pem: String::new(), ..leaf.clone() };
    assert!(matches!(verify(&empty, &api(), now()), Err(Unfit::Unreadable(_))));

    let elsewhere = tempfile::tempdir().unwrap();
    let stranger = authority(elsewhere.path());
    let untrusted = Credentials { roots_pem: stranger.trust().pem().to_owned(), ..leaf.clone() };
    assert_eq!(verify(&untrusted, &api(), now()), Err(Unfit::Untrusted));
    let both = Credentials { roots_pem: format!("{}{}", stranger.trust().pem(), leaf.roots_pem), ..leaf };
    assert_eq!(verify(&both, &api(), now()), Ok(()), "every root counts");
}

#[test]
fn chains_climb_over_intermediates_that_may_sign_and_no_others() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority(dir.path());
    let signed_below = |params: CertificateParams| {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &ca.issuer).unwrap();
        let below = Issuer::new(params, key);
        let leaf_key = KeyPair::generate().unwrap();
        let leaf = leaf_params(&api(), now(), now() + TTL).unwrap().signed_by(&leaf_key, &below).unwrap();
        let certificate_pem = format!("{}{}", leaf.pem(), certificate.pem());
        leaf::assemble(certificate_pem, leaf_key.serialize_pem(), ca.trust().pem().to_owned()).unwrap()
    };
    let intermediate = signed_below(root_params(lab().as_str(), now()).unwrap());
    assert_eq!(verify(&intermediate, &api(), now()), Ok(()));
    let service = signed_below(leaf_params(&identity(lab().as_str(), "evil"), now(), now() + TTL).unwrap());
    assert_eq!(verify(&service, &api(), now()), Err(Unfit::Untrusted), "a leaf signs nothing");
}

#[test]
fn a_leaf_never_outlives_the_root_and_a_dead_root_signs_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority(dir.path());
    let (_, end) = ca.trust().validity();
    let late = ca.issue(&api(), TTL, end - DAY).unwrap();
    assert_eq!(late.not_after, end);
    assert_eq!(ca.issue(&api(), Duration::MAX, now()).unwrap().not_after, end);
    assert_eq!(ca.issue(&api(), TTL, end + DAY).unwrap_err().code, "ENM-M028");
    assert_eq!(ca.issue(&api(), TTL, now() - DAY).unwrap_err().code, "ENM-M028");
    assert_eq!(ca.issue(&api(), Duration::from_secs(9), now()).unwrap_err().code, "ENM-M031");
    assert_eq!(ca.issue(&identity("other.consul", "api"), TTL, now()).unwrap_err().code, "ENM-M032");
}

#[test]
fn a_ca_is_not_overwritten_unless_it_must_be() {
    let dir = tempfile::tempdir().unwrap();
    let first = authority(dir.path());
    let fault = Authority::create(dir.path(), None, false, now()).unwrap_err();
    assert_eq!(fault.code, "ENM-M021");
    assert_eq!(Authority::open(dir.path()).unwrap().trust(), first.trust());
    let second = Authority::create(dir.path(), None, true, now()).unwrap();
    assert_ne!(second.trust().trust_domain(), first.trust().trust_domain());
    let leaf = first.issue(&api(), TTL, now()).unwrap();
    let mixed = Credentials { roots_pem: second.trust().pem().to_owned(), ..leaf };
    assert_eq!(verify(&mixed, &api(), now()), Err(Unfit::Untrusted), "the key is new, too");
}

#[test]
fn every_state_that_a_crash_leaves_is_recognised() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("ca");
    assert_eq!(folder_state(&folder).unwrap(), FolderState::Empty);
    assert_eq!(Authority::open(&folder).unwrap_err().code, "ENM-M020");

    fs::create_dir(&folder).unwrap();
    fs::write(folder.join(".root.key.4711.tmp"), "half").unwrap();
    assert_eq!(folder_state(&folder).unwrap(), FolderState::Empty, "a write that was cut short");

    let key = KeyPair::generate().unwrap().serialize_pem();
    fs::write(folder.join("root.key"), &key).unwrap();
    fs::set_permissions(folder.join("root.key"), Permissions::from_mode(0o600)).unwrap();
    assert_eq!(folder_state(&folder).unwrap(), FolderState::Unfinished);
    assert_eq!(Authority::open(&folder).unwrap_err().code, "ENM-M022");

    let ca = authority(&folder);
    assert_eq!(
        fs::read_to_string(folder.join("root.key")).unwrap(),
        key,
        "finished with the key that was there"
    );
    assert_eq!(folder_state(&folder).unwrap(), FolderState::Made);
    assert_eq!(verify(&ca.issue(&api(), TTL, now()).unwrap(), &api(), now()), Ok(()));

    fs::remove_file(folder.join("root.key")).unwrap();
    assert_eq!(folder_state(&folder).unwrap(), FolderState::Made, "roots of a CA that is elsewhere");
    assert_eq!(Authority::open(&folder).unwrap_err().code, "ENM-M020");

    fs::rename(folder.join("root.pem"), folder.join("api.pem")).unwrap();
    assert_eq!(folder_state(&folder).unwrap(), FolderState::Other);
}

#[test]
fn files_that_do_not_fit_together_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let (one, two) = (dir.path().join("one"), dir.path().join("two"));
    authority(&one);
    authority(&two);
    let key = one.join("root.key");
    fs::set_permissions(&key, Permissions::from_mode(0o644)).unwrap();
    let fault = Authority::open(&one).unwrap_err();
    assert_eq!(fault.code, "ENM-M027");
    assert!(fault.message.contains("0644") && fault.hint.contains("chmod 600"), "{fault} {}", fault.hint);
    fs::set_permissions(&key, Permissions::from_mode(0o600)).unwrap();

    fs::copy(two.join("root.key"), &key).unwrap();
    assert_eq!(Authority::open(&one).unwrap_err().code, "ENM-M026");
    fs::write(&key, "-----BEGIN RSA PRIVATE KEY-----\nAAAA\n-----END RSA PRIVATE KEY-----\n").unwrap();
    let fault = Authority::open(&one).unwrap_err();
    assert_eq!(fault.code, "ENM-M025");
    assert!(fault.message.contains("RSA PRIVATE KEY") && fault.hint.contains("openssl pkcs8"), "{fault}");
    fs::write(&key, "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n")
        .unwrap();
    assert!(Authority::open(&one).unwrap_err().message.contains("encrypted"));

    let leaf = Authority::open(&two).unwrap().issue(&api(), TTL, now()).unwrap();
    for (text, why) in [("", "no certificate"), (leaf.certificate_pem.as_str(), "may not sign")] {
        fs::write(two.join("root.pem"), text).unwrap();
        let fault = Authority::open(&two).unwrap_err();
        assert_eq!(fault.code, "ENM-M024");
        assert!(fault.message.contains(why), "{fault}");
    }
    fs::write(two.join("root.pem"), leaf.roots_pem.replace("MII", "MIJ")).unwrap();
    assert_eq!(Authority::open(&two).unwrap_err().code, "ENM-M024", "damaged");
}

/// A key as Consul and `openssl ecparam` write it: SEC 1, with the curve inside.
fn sec1(key: &KeyPair, curve: &[u8]) -> String {
    use base64::Engine as _;
    let pkcs8 = key.serialized_der();
    let start = pkcs8.windows(2).rposition(|pair| pair == [0x30, 0x6b]).unwrap();
    let content = &pkcs8[start + 2..];
    // Version and private key, then the curve, then the public key.
    let (private, public) = content.split_at(37);
    let mut parameters = vec![0xa0, u8::try_from(curve.len()).unwrap()];
    parameters.extend(curve);
    let mut whole = vec![0x30, u8::try_from(content.len() + parameters.len()).unwrap()];
    whole.extend([private, &parameters, public].concat());
    let body = base64::engine::general_purpose::STANDARD.encode(whole);
    format!("-----BEGIN EC PRIVATE KEY-----\n{body}\n-----END EC PRIVATE KEY-----\n")
}

#[test]
fn a_key_as_consul_writes_it_is_taken() {
    let p256 = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    let dir = tempfile::tempdir().unwrap();
    let ca = authority(dir.path());
    let text = sec1(ca.issuer.key(), &p256);
    for prefix in ["", "-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n"] {
        fs::write(dir.path().join("root.key"), format!("{prefix}{text}")).unwrap();
        let leaf = Authority::open(dir.path()).unwrap().issue(&api(), TTL, now()).unwrap();
        assert!(webpki_accepts(&leaf, now(), webpki::KeyUsage::client_auth));
    }
    let wrong_curve = sec1(ca.issuer.key(), &[0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22]);
    fs::write(dir.path().join("root.key"), wrong_curve).unwrap();
    assert_eq!(Authority::open(dir.path()).unwrap_err().code, "ENM-M025");
}

#[test]
fn several_roots_are_trusted_and_the_first_signs() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    let (old_ca, new_ca) = (authority(&old), authority(&new));
    let both = format!(
        "{}\n# the old one, until every host has the new\n{}",
        new_ca.trust().pem(),
        old_ca.trust().pem()
    );
    fs::write(new.join("root.pem"), &both).unwrap();
    let ca = Authority::open(&new).unwrap();
    let leaf = ca.issue(&api(), TTL, now()).unwrap();
    assert_eq!(leaf.roots_pem, both);
    assert!(webpki_accepts(&leaf, now(), webpki::KeyUsage::client_auth), "the first root signed");
    let from_old = old_ca.issue(&api(), TTL, now()).unwrap();
    assert_eq!(verify(&Credentials { roots_pem: both, ..from_old }, &api(), now()), Ok(()));
}

#[test]
fn renewal_comes_between_60_and_90_percent_of_life() {
    let dir = tempfile::tempdir().unwrap();
    let leaf = authority(dir.path()).issue(&api(), TTL, now()).unwrap();
    let life = leaf.not_after.duration_since(leaf.not_before).unwrap();
    let part = |jitter: f64| {
        renew_at(&leaf, jitter).duration_since(leaf.not_before).unwrap().as_secs_f64() / life.as_secs_f64()
    };
    for (jitter, expected) in [(0.0, 0.6), (0.5, 0.75), (1.0, 0.9), (-3.0, 0.6), (7.0, 0.9), (f64::NAN, 0.6)]
    {
        assert!((part(jitter) - expected).abs() < 1e-6, "{jitter}: {}", part(jitter));
    }
    assert!((0.0..=1.0).contains(&jitter(&leaf)));
    let at = renew_at(&leaf, jitter(&leaf));
    assert!(!needs_renewal(&leaf, now()) && !needs_renewal(&leaf, at - Duration::from_secs(1)));
    assert!(needs_renewal(&leaf, at) && needs_renewal(&leaf, leaf.not_after + DAY));
    assert!(needs_renewal(&leaf, leaf.not_before - Duration::from_secs(1)), "the clock was set back");
}

#[test]
fn a_kept_leaf_serves_until_it_is_due() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority(&dir.path().join("ca"));
    let store = LeafStore::new(dir.path().join("leaf"));
    let id: ServiceId = "api-1".parse().unwrap();
    let get = |ca: &Authority, identity: &SpiffeId, ttl, at| {
        store.current_or_issue(ca, &id, identity, ttl, at).unwrap()
    };

    let (first, fresh) = get(&ca, &api(), TTL, now());
    assert!(fresh);
    assert_eq!(mode(&dir.path().join("leaf")), 0o700);
    assert_eq!(mode(&dir.path().join("leaf/api-1.key")), 0o600);
    assert_eq!(mode(&dir.path().join("leaf/api-1.pem")), 0o600);
    assert_eq!(get(&ca, &api(), TTL, now() + DAY), (first.clone(), false), "a restart issues nothing");

    let due = renew_at(&first, jitter(&first));
    let (second, fresh) = get(&ca, &api(), TTL, due);
    let rounded = (due + TTL).duration_since(second.not_after).unwrap();
    assert!(fresh && rounded < Duration::from_secs(1), "{rounded:?}");

    assert!(get(&ca, &identity(lab().as_str(), "web"), TTL, due).1, "the id is another service's now");
    assert!(get(&ca, &api(), TTL, due).1);
    assert!(get(&ca, &api(), Duration::from_secs(3600), due).1, "a shorter life was configured");
    assert!(!get(&ca, &api(), Duration::from_secs(3600), due).1);
    store.remove(&id).unwrap();
    assert_eq!(fs::read_dir(dir.path().join("leaf")).unwrap().count(), 0);
    assert!(get(&ca, &api(), TTL, due).1);
}

#[test]
fn a_kept_leaf_that_does_not_fit_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (authority(&dir.path().join("old")), authority(&dir.path().join("new")));
    let folder = dir.path().join("leaf");
    let store = LeafStore::new(&folder);
    let id: ServiceId = "api".parse().unwrap();
    let fresh = |ca: &Authority| store.current_or_issue(ca, &id, &api(), TTL, now()).unwrap().1;
    assert!(fresh(&old) && !fresh(&old));

    // Both roots are trusted while they change, but a leaf of the old one is renewed at once.
    let both = format!("{}{}", new.trust().pem(), old.trust().pem());
    fs::write(dir.path().join("new/root.pem"), both).unwrap();
    let changed = Authority::open(&dir.path().join("new")).unwrap();
    assert!(fresh(&changed) && !fresh(&changed));

    // Killed between the two files: the new key is there, the certificate is still the old one.
    fs::write(folder.join("api.key"), KeyPair::generate().unwrap().serialize_pem()).unwrap();
    assert!(fresh(&changed) && !fresh(&changed));
    for broken in ["api.key", "api.pem"] {
        fs::write(folder.join(broken), "garbage").unwrap();
        assert!(fresh(&changed) && !fresh(&changed));
        fs::remove_file(folder.join(broken)).unwrap();
        assert!(fresh(&changed) && !fresh(&changed));
    }
}

#[test]
fn trust_domains_are_random_uuids_unless_given() {
    let (one, two) = (random_trust_domain(), random_trust_domain());
    assert_ne!(one, two);
    assert!(one.parse::<TrustDomain>().is_ok());
    let parts: Vec<usize> = one.trim_end_matches(".consul").split('-').map(str::len).collect();
    assert_eq!(parts, [8, 4, 4, 4, 12]);
    assert_eq!(&one[14..15], "4", "version 4: {one}");
    assert!("89ab".contains(&one[19..20]), "the variant: {one}");
}

proptest! {
    #[test]
    fn no_pem_makes_the_readers_panic(label in "(EC |RSA )?(PRIVATE KEY|CERTIFICATE|EC PARAMETERS)", body in "[A-Za-z0-9+/=\n]{0,200}") {
        let text = format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n");
        prop_assert!(super::pem::certificates(&text).is_err());
        prop_assert!(super::pem::private_key(&text).is_err());
    }
}

/// Every bit of what is signed, and of the signature. The few bytes around them say nothing of their
/// own, and the parser does not mind all of them.
#[test]
fn no_damaged_certificate_is_accepted() {
    let dir = tempfile::tempdir().unwrap();
    let leaf = authority(dir.path()).issue(&api(), TTL, now()).unwrap();
    let whole = der(&leaf.certificate_pem);
    let (_, parsed) = parse_x509_certificate(&whole).unwrap();
    let place = |part: &[u8]| {
        let start = whole.windows(part.len()).position(|window| window == part).unwrap();
        start..start + part.len()
    };
    let (signed, signature) = (place(parsed.tbs_certificate.as_ref()), place(&parsed.signature_value.data));
    for (at, bit) in signed.chain(signature).flat_map(|at| (0..8).map(move |bit| (at, bit))) {
        let mut damaged = whole.clone();
        damaged[at] ^= 1 << bit;
        let certificate_pem = super::pem::encode_certificate(&damaged);
        let damaged = Credentials { certificate_pem, ..leaf.clone() };
        assert!(verify(&damaged, &api(), now()).is_err(), "bit {bit} of byte {at} of {}", whole.len());
    }
}
