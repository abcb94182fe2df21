//! TCP: who comes in by what, and that web pages do not.
#![allow(clippy::unwrap_used, reason = "a test that meets an Err stops there and shows it")]

mod support;

use std::path::PathBuf;

use bantam_daemon::settings::Settings;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use support::{Folder, Running, ask, ask_with, code, open};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Status};

const TOKEN: &str = "0123456789abcdef0123";

fn with_tokens(folder: &Folder) -> Settings {
    let tcp_tokens = folder.file("tokens", &format!("ann: {TOKEN}\n"));
    Settings { tcp_listen: vec![([127, 0, 0, 1], 0).into()], tcp_tokens, ..folder.settings() }
}

#[tokio::test]
async fn an_address_without_a_lock_is_not_bound() {
    let folder = Folder::new();
    for (at, loopback) in
        [("127.0.0.1:0", false), ("[::1]:0", false), ("0.0.0.0:0", true), ("0.0.0.0:0", false)]
    {
        let tcp_listen = vec![at.parse().unwrap()];
        let settings = Settings { tcp_listen, tcp_open_loopback: loopback, ..folder.settings() };
        let error = open(settings).await.unwrap_err().to_string();
        assert!(
            error.contains("expected tcp.tokens or tls.client_ca, found neither"),
            "{at} {loopback}: {error}"
        );
        assert!(!folder.socket().exists(), "no door is opened where one is refused");
    }
}

#[tokio::test]
async fn a_token_lets_in_and_nothing_else() {
    let folder = Folder::new();
    let server = Running::start(with_tokens(&folder)).await;
    let longer = format!("Bearer {TOKEN}4");
    let right = format!("Bearer {TOKEN}");
    for (header, expected) in [
        (None, Code::Unauthenticated),
        (Some(("authorization", "Bearer ")), Code::Unauthenticated),
        (Some(("authorization", "Bearer 0123456789abcdef0124")), Code::Unauthenticated),
        (Some(("authorization", longer.as_str())), Code::Unauthenticated),
        (Some(("authorization", TOKEN)), Code::Unauthenticated),
        (Some(("authorization", right.as_str())), Code::Ok),
    ] {
        let answer = ask_with(server.tcp().await, header).await;
        assert_eq!(code(&answer), expected, "{header:?}");
        if let Err(status) = answer {
            assert!(!status.message().contains("0123456789"), "{status:?}");
        }
    }
    assert_eq!(code(&ask(server.channel().await).await), Code::Ok, "the unix socket asks for none");
    let text = server.meters.render();
    assert!(text.contains("bantam_refusals_total{reason=\"WRONG_TOKEN\"} 3"), "{text}");
    server.end().await;
}

#[tokio::test]
async fn browsers_are_refused_even_with_a_token() {
    let folder = Folder::new();
    let server = Running::start(with_tokens(&folder)).await;
    for (name, value) in [("origin", "http://localhost"), ("sec-fetch-site", "same-origin")] {
        let status = ask_with(server.tcp().await, Some((name, value))).await.unwrap_err();
        assert_eq!(status.code(), Code::PermissionDenied, "{name}");
        assert!(status.message().contains(name), "{status:?}");
    }
    let mut stream = tokio::net::TcpStream::connect(server.addresses[0]).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(answer.starts_with(b"HTTP/1.1 505"), "{}", String::from_utf8_lossy(&answer));
    server.end().await;
}

#[tokio::test]
async fn open_loopback_needs_no_token_and_its_own_name() {
    let folder = Folder::new();
    let tcp_listen = vec![([127, 0, 0, 1], 0).into()];
    let server = Running::start(Settings { tcp_listen, tcp_open_loopback: true, ..folder.settings() }).await;
    assert_eq!(code(&ask(server.tcp().await).await), Code::Ok);
    let named = |name: &str| {
        let target = format!("http://127.0.0.1:{}", server.addresses[0].port());
        let origin = format!("http://{name}:{}", server.addresses[0].port());
        Endpoint::from_shared(target).unwrap().origin(origin.parse().unwrap()).connect_lazy()
    };
    assert_eq!(code(&ask(named("localhost")).await), Code::Ok);
    let rebound = ask(named("evil.example")).await.unwrap_err();
    assert_eq!(rebound.code(), Code::PermissionDenied, "{rebound:?}");
    server.end().await;
}

/// An authority, and what it signed.
struct Authority(Issuer<'static, KeyPair>, String);

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let pem = params.self_signed(&key).unwrap().pem();
        Self(Issuer::new(params, key), pem)
    }

    /// A certificate and its key.
    fn sign(&self, name: &str) -> (String, String) {
        let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, &self.0).unwrap().pem(), key.serialize_pem())
    }
}

fn with_tls(folder: &Folder, authority: &Authority, client_ca: bool) -> Settings {
    let (certificate, key) = authority.sign("localhost");
    Settings {
        tcp_listen: vec![([127, 0, 0, 1], 0).into()],
        tls_certificate: folder.file("server.pem", &certificate),
        tls_key: folder.file("server.key", &key),
        tls_client_ca: if client_ca { folder.file("ca.pem", &authority.1) } else { PathBuf::new() },
        ..folder.settings()
    }
}

async fn ask_by_tls(
    server: &Running,
    authority: &Authority,
    client: Option<(String, String)>,
    header: Option<(&'static str, &str)>,
) -> Result<(), Status> {
    let mut tls =
        ClientTlsConfig::new().ca_certificate(Certificate::from_pem(&authority.1)).domain_name("localhost");
    if let Some((certificate, key)) = client {
        tls = tls.identity(Identity::from_pem(certificate, key));
    }
    let target = format!("https://localhost:{}", server.addresses[0].port());
    let channel: Channel = Endpoint::from_shared(target).unwrap().tls_config(tls).unwrap().connect_lazy();
    ask_with(channel, header).await
}

#[tokio::test]
async fn a_certificate_lets_in_and_others_do_not() {
    let folder = Folder::new();
    let (authority, other) = (Authority::new(), Authority::new());
    let server = Running::start(with_tls(&folder, &authority, true)).await;
    let right = ask_by_tls(&server, &authority, Some(authority.sign("ann")), None).await;
    assert_eq!(code(&right), Code::Ok, "{right:?}");
    assert!(ask_by_tls(&server, &authority, Some(other.sign("ann")), None).await.is_err());
    assert!(ask_by_tls(&server, &authority, None, None).await.is_err());
    assert!(
        ask(Endpoint::from_shared(format!("http://{}", server.addresses[0])).unwrap().connect_lazy())
            .await
            .is_err()
    );
    let right = ask_by_tls(&server, &authority, Some(authority.sign("bob")), None).await;
    assert_eq!(code(&right), Code::Ok, "failed handshakes harm nobody: {right:?}");
    server.end().await;
}

#[tokio::test]
async fn with_both_set_up_a_token_will_do_for_a_certificate() {
    let folder = Folder::new();
    let authority = Authority::new();
    let tcp_tokens = folder.file("tokens", &format!("ann: {TOKEN}\n"));
    let server = Running::start(Settings { tcp_tokens, ..with_tls(&folder, &authority, true) }).await;
    let bearer = format!("Bearer {TOKEN}");
    let token = Some(("authorization", bearer.as_str()));
    assert_eq!(code(&ask_by_tls(&server, &authority, None, token).await), Code::Ok);
    assert_eq!(code(&ask_by_tls(&server, &authority, None, None).await), Code::Unauthenticated);
    assert_eq!(code(&ask_by_tls(&server, &authority, Some(authority.sign("ann")), None).await), Code::Ok);
    server.end().await;
}

#[tokio::test]
async fn files_of_tls_are_judged_by_name() {
    let folder = Folder::new();
    let authority = Authority::new();
    let sound = with_tls(&folder, &authority, true);
    support::mode(&sound.tls_key, 0o644);
    let error = open(sound.clone()).await.unwrap_err().to_string();
    assert!(error.contains("tls.key:") && error.contains("mode 644"), "{error}");
    support::mode(&sound.tls_key, 0o600);
    let swapped = Settings { tls_certificate: sound.tls_key.clone(), ..sound.clone() };
    let error = open(swapped).await.unwrap_err().to_string();
    assert!(error.contains("tls.certificate:") && error.contains("expected certificates in PEM"), "{error}");
    let missing = Settings { tls_client_ca: folder.0.join("none"), ..sound.clone() };
    let error = open(missing).await.unwrap_err().to_string();
    assert!(error.contains("tls.client_ca:"), "{error}");
    let other = Settings { tls_key: folder.file("other.key", &authority.sign("x").1), ..sound };
    let error = open(other).await.unwrap_err().to_string();
    assert!(error.contains("do not go together"), "{error}");
}
