//! How a relay gets in: passwords that change while it runs, TLS with certificates of the test's own.
use std::fs;
use std::path::{Path, PathBuf};

use chronfs::Queue;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::broker::{Broker, Setup};
use crate::common::{SMALL, append, filled, payload, writer};
use crate::relay::{Relay, check_exact, command, until_caught_up};
use crate::service::{report, until_report};

fn a_password_that_changes_is_read_again<B: Broker>(mut servers: B) {
    let dir = tempfile::tempdir().unwrap();
    let (path, password, log) = (dir.path().join("q"), dir.path().join("password"), dir.path().join("log"));
    let queue = filled(&path, &SMALL, 100, |seq| payload(seq, 300));
    fs::write(&password, "relay:first\n").unwrap();
    let options = ["--password-file", password.to_str().unwrap()];
    let relay = Relay::start(path.to_str().unwrap(), &servers.target("Q"), &options, &log);
    until_caught_up(&queue, "relay");

    servers.change_password("first", "second");
    append(&mut writer(&queue), 100, |seq| payload(seq, 300));
    until_report(&path, "relay", "it is not let in", |report| {
        report["condition"] == "waiting"
            && report["reason"].as_str().is_some_and(|reason| reason.contains(B::NOT_LET_IN))
    });
    let waiting = report(&path, "relay");
    assert!(waiting["lag_messages"].as_u64() > Some(0), "{waiting}");

    fs::remove_file(&password).unwrap();
    until_report(&path, "relay", "the file is missing", |report| {
        report["reason"].as_str().is_some_and(|reason| reason.contains("password: cannot read it"))
    });
    fs::write(&password, "relay:second\n").unwrap();
    until_caught_up(&queue, "relay");
    relay.stop();
    assert_eq!(check_exact(&servers, "Q", &queue), 200);
}

/// An authority, as PEM in a file.
fn authority(path: &Path) -> CertifiedIssuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // Certificates of the same name would be taken for self-signed ones.
    params.distinguished_name.push(DnType::CommonName, "authority");
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    fs::write(path, authority.pem()).unwrap();
    authority
}

/// A certificate of an authority for a host, and its key, in NAME.pem and NAME.key.
fn certificate(dir: &Path, name: &str, authority: &CertifiedIssuer<'static, KeyPair>, host: &str) {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
    fs::write(dir.join(format!("{name}.pem")), params.signed_by(&key, authority).unwrap().pem()).unwrap();
    fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
}

/// A server with a certificate of the authority `ca.pem` in this directory.
fn with_tls<B: Broker>(dir: &Path, right: &CertifiedIssuer<'static, KeyPair>, asks: bool) -> Option<B> {
    certificate(dir, "server", right, "127.0.0.1");
    let file = |name: &str| -> PathBuf { dir.join(name) };
    B::with(&Setup::Tls { ca: file("ca.pem"), certificate: file("server.pem"), key: file("server.key"), asks })
}

fn with_tls_only_the_right_authority_is_trusted<B: Broker>() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let right = authority(&dir.path().join("ca.pem"));
    authority(&dir.path().join("wrong.pem"));
    let Some(servers) = with_tls::<B>(dir.path(), &right, false) else { return };
    let (path, log) = (dir.path().join("q"), dir.path().join("log"));
    let queue = filled(&path, &SMALL, 100, |seq| payload(seq, 300));
    let (from, target) = (path.to_str().unwrap(), servers.target("Q"));

    // Without an authority of its own, the relay trusts the system's.
    for (options, reason) in [
        (vec!["--ca".to_owned(), file("wrong.pem")], "certificate is not trusted"),
        (vec![], "certificate is not trusted"),
        (vec!["--ca".to_owned(), file("missing.pem")], "missing.pem: cannot read it"),
        (vec!["--ca".to_owned(), file("server.key")], "server.key: no certificate in it"),
    ] {
        let options: Vec<_> = options.iter().map(String::as_str).collect();
        let relay = Relay::start(from, &target, &options, &log);
        until_report(&path, "relay", "it does not trust the server", |report| {
            report["condition"] == "waiting" && report["reason"].as_str().is_some_and(|given| given.contains(reason))
        });
        relay.stop();
    }
    let ca = file("ca.pem");
    let relay = Relay::start(from, &target, &["--ca", &ca], &log);
    until_caught_up(&queue, "relay");
    relay.stop();
    assert_eq!(check_exact(&servers, "Q", &queue), 100);
    let copy = dir.path().join("copy");
    let standby = Relay::start(&target, copy.to_str().unwrap(), &["--ca", &ca], &log);
    until_report(&copy, "relay", "all is there", |report| report["pair"]["seq"] == 100);
    standby.stop();
    assert_eq!(crate::relay::check_same(&queue, &Queue::open(&copy).unwrap()), 100);
    let verified = command().args(["verify", from, &target, "--ca", &ca]).output().unwrap();
    assert!(verified.status.success(), "{}", crate::common::text(&verified.stderr));
}

fn a_server_that_asks_for_a_certificate_gets_it<B: Broker>() {
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    let right = authority(&dir.path().join("ca.pem"));
    certificate(dir.path(), "client", &right, "relay");
    let Some(servers) = with_tls::<B>(dir.path(), &right, true) else { return };
    let (path, log) = (dir.path().join("q"), dir.path().join("log"));
    let queue = filled(&path, &SMALL, 100, |seq| payload(seq, 300));
    let (from, target, ca) = (path.to_str().unwrap(), servers.target("Q"), file("ca.pem"));
    let relay = Relay::start(from, &target, &["--ca", &ca], &log);
    until_report(&path, "relay", "it is asked for a certificate", |report| {
        report["condition"] == "waiting" && report["counts"]["retries"].as_u64() > Some(1)
    });
    assert_eq!(report(&path, "relay")["pair"]["seq"], 0);
    relay.stop();
    let (certificate, key) = (file("client.pem"), file("client.key"));
    let options = ["--ca", &ca, "--certificate", &certificate, "--key", &key];
    let relay = Relay::start(from, &target, &options, &log);
    until_caught_up(&queue, "relay");
    relay.stop();
}

with_each_broker! {
    a_password_that_changes_is_read_again: Password("first"),
}

mod nats_tls {
    use crate::cluster::Cluster;

    #[test]
    fn only_the_right_authority_is_trusted() {
        super::with_tls_only_the_right_authority_is_trusted::<Cluster>();
    }

    #[test]
    fn a_server_that_asks_for_a_certificate_gets_it() {
        super::a_server_that_asks_for_a_certificate_gets_it::<Cluster>();
    }
}

mod redis_tls {
    use crate::redis_server::Redis;

    #[test]
    fn only_the_right_authority_is_trusted() {
        super::with_tls_only_the_right_authority_is_trusted::<Redis>();
    }

    #[test]
    fn a_server_that_asks_for_a_certificate_gets_it() {
        super::a_server_that_asks_for_a_certificate_gets_it::<Redis>();
    }
}
