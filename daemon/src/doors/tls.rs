//! TLS of the TCP doors: what we show, and whose certificates let a client in. rustls does the work.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::server::WebPkiClientVerifier;
use tokio_rustls::rustls::{RootCertStore, ServerConfig};

use crate::settings::Settings;

/// Why TLS cannot start.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file is not what it should be.
    #[error("{setting}: {}: expected {expected}, found: {found}; name another file", path.display())]
    File {
        /// The key.
        setting: &'static str,
        /// The file.
        path: PathBuf,
        /// What it should hold.
        expected: &'static str,
        /// What reading it said.
        found: String,
    },
    /// The private key can be read by everybody.
    #[error(
        "tls.key: {}: expected a file that others cannot read, found mode {mode:03o}; chmod 600 it",
        path.display()
    )]
    OpenKey {
        /// The file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// The parts do not go together.
    #[error(
        "tls: the certificate, key and authority do not go together: {0}; see tls.certificate, tls.key, tls.client_ca"
    )]
    Together(String),
}

fn certificates(setting: &'static str, path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |found: String| TlsError::File {
        setting,
        path: path.to_owned(),
        expected: "certificates in PEM",
        found,
    };
    let all: Result<Vec<_>, _> = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
    match all {
        Ok(all) if all.is_empty() => Err(wrong("none".to_owned())),
        Ok(all) => Ok(all),
        Err(error) => Err(wrong(error.to_string())),
    }
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    use std::os::unix::fs::MetadataExt;
    let wrong = |found| TlsError::File {
        setting: "tls.key",
        path: path.to_owned(),
        expected: "a private key in PEM",
        found,
    };
    let mode = std::fs::metadata(path).map_err(|error| wrong(error.to_string()))?.mode() & 0o777;
    // A group may read it: machines share certificates by groups.
    if mode & 0o007 != 0 {
        return Err(TlsError::OpenKey { path: path.to_owned(), mode });
    }
    PrivateKeyDer::from_pem_file(path).map_err(|error| wrong(error.to_string()))
}

/// Nothing where no certificate is set. Where there are tokens too, a client may come without a certificate.
pub(super) fn acceptor(settings: &Settings, tokens: bool) -> Result<Option<TlsAcceptor>, TlsError> {
    if settings.tls_certificate.as_os_str().is_empty() {
        return Ok(None);
    }
    let together = |error: &dyn std::fmt::Display| TlsError::Together(error.to_string());
    let provider = Arc::new(ring::default_provider());
    let builder = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(|error| together(&error))?;
    let builder = if settings.tls_client_ca.as_os_str().is_empty() {
        builder.with_no_client_auth()
    } else {
        let mut roots = RootCertStore::empty();
        for root in certificates("tls.client_ca", &settings.tls_client_ca)? {
            roots.add(root).map_err(|error| together(&error))?;
        }
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
        let verifier = if tokens { verifier.allow_unauthenticated() } else { verifier };
        builder.with_client_cert_verifier(verifier.build().map_err(|error| together(&error))?)
    };
    let shown = certificates("tls.certificate", &settings.tls_certificate)?;
    let config = builder.with_single_cert(shown, key(&settings.tls_key)?);
    let mut config = config.map_err(|error| together(&error))?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Some(TlsAcceptor::from(Arc::new(config))))
}

/// The common name of a verified certificate's subject, for logs and limits.
pub(super) fn subject(certificate: &CertificateDer<'_>) -> Arc<str> {
    let name = webpki::EndEntityCert::try_from(certificate).ok();
    let name = name.and_then(|parsed| common_name(parsed.subject()));
    name.unwrap_or_else(|| "unnamed".to_owned()).into()
}

/// In a subject's DER the name follows its object identifier 2.5.4.3 as a string: tag, length (of one byte), text.
fn common_name(subject: &[u8]) -> Option<String> {
    const OID: [u8; 5] = [0x06, 0x03, 0x55, 0x04, 0x03];
    let at = subject.windows(OID.len()).position(|window| window == OID)? + OID.len();
    let length = usize::from(*subject.get(at + 1)?);
    let text = std::str::from_utf8(subject.get(at + 2..at + 2 + length)?).ok()?;
    (length < 128 && !text.chars().any(char::is_control)).then(|| text.to_owned())
}
