use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rcgen::{CertificateParams, KeyPair, date_time_ymd};
use rustls::SignatureScheme;
use tempfile::TempDir;

use super::*;

fn write(folder: &Path, name: &str, change: impl FnOnce(&mut CertificateParams)) -> [PathBuf; 2] {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec![name.to_owned()]).unwrap();
    change(&mut params);
    let certificate = params.self_signed(&key).unwrap();
    let file = name.replace('*', "any");
    let files = ["pem", "key"].map(|extension| folder.join(format!("{file}.{extension}")));
    fs::write(&files[0], certificate.pem()).unwrap();
    fs::write(&files[1], key.serialize_pem()).unwrap();
    fs::set_permissions(&files[1], fs::Permissions::from_mode(0o600)).unwrap();
    files
}

fn load(files: &[[PathBuf; 2]]) -> anyhow::Result<Arc<CertificateStore>> {
    let of = |at: usize| files.iter().map(|pair| pair[at].clone()).collect();
    let settings = TlsSettings { certificates: of(0), keys: of(1) };
    settings.load().map(|loaded| loaded.unwrap().0)
}

#[test]
fn a_client_gets_the_certificate_of_the_name_that_it_asks_for() {
    let folder = TempDir::new().unwrap();
    let names = ["first.example", "second.example", "*.second.example"];
    let files = names.map(|name| write(folder.path(), name, |_| {}));
    let store = load(&files).unwrap();
    let of = |name| {
        let schemes = [SignatureScheme::ECDSA_NISTP256_SHA256];
        store.current.load().of(name, &schemes).unwrap().cert[0].clone()
    };
    let own = |at: usize| store.current.load().of(Some(names[at]), &[]).unwrap().cert[0].clone();
    assert_ne!(own(0), own(1));
    for (asked, at) in [
        (None, 0),
        (Some("first.example"), 0),
        (Some("SECOND.example"), 1),
        (Some("www.second.example"), 2),
        (Some("a.www.second.example"), 0),
        (Some("other.example"), 0),
        (Some("example"), 0),
    ] {
        assert_eq!(of(asked), own(at), "{asked:?}");
    }
    assert_ne!(own(1), own(2));
}

#[test]
fn a_refusal_names_the_file_and_the_fault() {
    let folder = TempDir::new().unwrap();
    let good = write(folder.path(), "good.example", |_| {});
    let other = write(folder.path(), "other.example", |_| {});
    let ended = write(folder.path(), "ended.example", |params| {
        params.not_after = date_time_ymd(2020, 1, 1);
    });
    let later = write(folder.path(), "later.example", |params| {
        params.not_before = date_time_ymd(4000, 1, 1);
    });
    let open = write(folder.path(), "open.example", |_| {});
    fs::set_permissions(&open[1], fs::Permissions::from_mode(0o644)).unwrap();
    let text = folder.path().join("text");
    fs::write(&text, "no PEM at all").unwrap();
    fs::set_permissions(&text, fs::Permissions::from_mode(0o600)).unwrap();
    let pair = |certificate: &Path, key: &Path| [certificate, key].map(Path::to_owned);
    let refusal = |files: [PathBuf; 2]| format!("{:#}", load(&[files]).unwrap_err());
    for (files, flag, fault) in [
        (pair(&good[0], &other[1]), "--tls-certificate", "not the certificate of"),
        (ended, "--tls-certificate", "it has ended"),
        (later, "--tls-certificate", "it begins only"),
        (open, "--tls-key", "0644"),
        (pair(&text, &good[1]), "--tls-certificate", "no certificate in it"),
        (pair(&good[0], &text), "--tls-key", "no private key"),
        (pair(&folder.path().join("none"), &good[1]), "--tls-certificate", "cannot read"),
        (pair(&good[0], &folder.path().join("none")), "--tls-key", "cannot read"),
    ] {
        let refused = refusal(files);
        assert!(refused.contains(flag) && refused.contains(fault), "{refused}");
        assert!(!refused.contains("-----BEGIN"), "{refused}");
    }
    fs::set_permissions(&good[1], fs::Permissions::from_mode(0o640)).unwrap();
    load(&[good]).unwrap();
    let unpaired = TlsSettings { certificates: vec![text], keys: Vec::new() };
    assert!(format!("{:#}", unpaired.load().unwrap_err()).contains("--tls-key 0 times"));
    assert!(TlsSettings::default().load().unwrap().is_none());
}

#[test]
fn bad_files_change_nothing() {
    let folder = TempDir::new().unwrap();
    let files = write(folder.path(), "a.example", |_| {});
    let store = load(std::slice::from_ref(&files)).unwrap();
    let own = || store.current.load().of(None, &[]).unwrap().cert[0].clone();
    let before = own();
    let apply = || store.apply(&reload::read(store.files()).unwrap());

    // The certificate is written first; its key is still the old one.
    let other = TempDir::new().unwrap();
    let next = write(other.path(), "a.example", |_| {});
    fs::copy(&next[0], &files[0]).unwrap();
    let refused = format!("{:#}", apply().unwrap_err());
    assert!(refused.contains("not the certificate of"), "{refused}");
    assert_eq!(own(), before, "the old one stays");
    fs::copy(&next[1], &files[1]).unwrap();
    let version = apply().unwrap();
    assert_ne!(own(), before);
    assert_eq!((version.len(), version), (16, apply().unwrap()));
}
