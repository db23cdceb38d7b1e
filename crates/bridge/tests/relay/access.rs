//! How a relay gets in: passwords that change while it runs, TLS with certificates of the test's own.
use std::fs;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};

use crate::broker::{Broker, Setup};
use crate::case::Case;
use crate::cluster::{self, Cluster};
use crate::relay::{check_exact, command};
use crate::service::{Service, until_report};

fn a_password_that_changes_is_read_again<B: Broker>(mut servers: B) {
    let case = Case::new(100);
    let password = case.file("password");
    fs::write(&password, "relay:first\n").unwrap();
    let relay = case.start(&servers.target("Q"), &["--password-file", password.to_str().unwrap()]);
    case.until_caught_up();

    servers.change_password("first", "second");
    case.append(100);
    case.until_waiting(B::NOT_LET_IN);
    let waiting = case.report();
    assert!(waiting["lag_messages"].as_u64() > Some(0), "{waiting}");

    fs::remove_file(&password).unwrap();
    case.until_waiting("password: cannot read it");
    fs::write(&password, "relay:second\n").unwrap();
    case.until_caught_up();
    relay.stop();
    assert_eq!(check_exact(&servers, "Q", &case.queue), 200);
}

/// A file that is named without a directory is one of systemd's, where it gives the relay some.
#[test]
fn a_token_is_one_of_systemds_credentials() {
    if !cluster::is_there() {
        return;
    }
    let cluster = Cluster::with_lines(1, "authorization { token: secret }");
    let case = Case::new(10);
    let (config, credentials) = (case.file("relay.toml"), case.file("credentials"));
    let toml = format!("from = {:?}\nto = {:?}\n[access]\ntoken_file = 'token'\n", case.path(), cluster.target("Q"));
    fs::write(&config, toml).unwrap();
    let start = || {
        let mut run = command();
        run.arg("run").arg("--config").arg(&config).env("CREDENTIALS_DIRECTORY", &credentials);
        Service::start(run, &case.file("log"))
    };
    fs::create_dir(&credentials).unwrap();
    fs::write(credentials.join("token"), "wrong\n").unwrap();
    let relay = start();
    case.until_waiting(Cluster::NOT_LET_IN);
    fs::write(credentials.join("token"), "secret\n").unwrap();
    case.until_caught_up();
    relay.stop();
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
    let case = Case::new(100);
    let file = |name: &str| case.file(name).to_str().unwrap().to_owned();
    let right = authority(&case.file("ca.pem"));
    authority(&case.file("wrong.pem"));
    let Some(servers) = with_tls::<B>(case.dir.path(), &right, false) else { return };
    let target = servers.target("Q");

    // Without an authority of its own, the relay trusts the system's.
    for (options, reason) in [
        (vec!["--ca".to_owned(), file("wrong.pem")], "certificate is not trusted"),
        (vec![], "certificate is not trusted"),
        (vec!["--ca".to_owned(), file("missing.pem")], "missing.pem: cannot read it"),
        (vec!["--ca".to_owned(), file("server.key")], "server.key: no certificate in it"),
    ] {
        let options: Vec<_> = options.iter().map(String::as_str).collect();
        let relay = case.start(&target, &options);
        case.until_waiting(reason);
        relay.stop();
    }
    let ca = file("ca.pem");
    case.relay_all(&target, &["--ca", &ca]);
    assert_eq!(check_exact(&servers, "Q", &case.queue), 100);
    case.copy_all(&target, &["--ca", &ca]);
    assert_eq!(case.check_copy(), 100);
    let verified = command().args(["verify", case.path().to_str().unwrap(), &target, "--ca", &ca]).output().unwrap();
    assert!(verified.status.success(), "{}", crate::common::text(&verified.stderr));
}

fn a_server_that_asks_for_a_certificate_gets_it<B: Broker>() {
    let case = Case::new(100);
    let file = |name: &str| case.file(name).to_str().unwrap().to_owned();
    let right = authority(&case.file("ca.pem"));
    certificate(case.dir.path(), "client", &right, "relay");
    let Some(servers) = with_tls::<B>(case.dir.path(), &right, true) else { return };
    let (target, ca) = (servers.target("Q"), file("ca.pem"));
    let relay = case.start(&target, &["--ca", &ca]);
    until_report(case.path(), "relay", "it is asked for a certificate", |report| {
        report["condition"] == "waiting" && report["counts"]["retries"].as_u64() > Some(1)
    });
    assert_eq!(case.report()["pair"]["seq"], 0);
    relay.stop();
    let (certificate, key) = (file("client.pem"), file("client.key"));
    case.relay_all(&target, &["--ca", &ca, "--certificate", &certificate, "--key", &key]);
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
