//! A file that is cut while a model lives on its map: an error for those who use it, a fresh load for those after them.

use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use bantam_daemon::settings::Settings;
use bantam_model::native::Store;
use bantam_proto::v1;
use tonic::Code;

use super::is_serving;
use crate::support::served::{Served, asked, generate};

const MODEL: &str = "gpt_oss-mxfp4";

/// The native files that the daemon has written.
fn kept(store: &Store) -> Vec<PathBuf> {
    let files = std::fs::read_dir(store.folder()).into_iter().flatten().flatten().map(|entry| entry.path());
    files.filter(|path| path.extension().is_some_and(|name| name == "safetensors")).collect()
}

#[tokio::test]
async fn a_mapped_file_that_is_cut_fails_its_requests_and_is_loaded_again() {
    let served = Served::keeping(|settings| Settings { native_files: true, ..settings }).await;
    let (store, mut client) = (served.store(), served.generation().await);
    let mut models = served.models().await;
    let request = || {
        let mut request = asked(MODEL, "", 8, 1);
        request.input = Some(v1::generate_request::Input::PromptIds(v1::TokenIds { ids: vec![1, 2, 3] }));
        request.options.as_mut().unwrap().ignore_eos = true;
        request
    };
    let expected = generate(&mut client, request()).await.unwrap().ids();
    models.unload(v1::UnloadRequest { model: MODEL.to_owned() }).await.unwrap();
    // The second load maps what the first has written.
    assert_eq!(generate(&mut client, request()).await.unwrap().ids(), expected);
    let files = kept(&store);
    assert_eq!(files.len(), 1, "{files:?}");
    std::fs::set_permissions(&files[0], std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::OpenOptions::new().write(true).open(&files[0]).unwrap().set_len(1).unwrap();
    let refused = generate(&mut client, request()).await.unwrap_err();
    assert_eq!(refused.code(), Code::DataLoss, "{refused:?}");
    is_serving(&served).await;
    assert_eq!(generate(&mut client, request()).await.unwrap().ids(), expected, "it is loaded anew");
    served.end().await;
}
