//! Containers that say whom they believe, and servers within their pod.

use std::{
    fs::{self, File},
    os::{fd::OwnedFd, unix::fs::symlink},
    sync::atomic::Ordering::SeqCst,
};

use krustlet_model::ContainerId;
use krustlet_testkit::Authority;
use tempfile::TempDir;
use tokio::time::{advance, timeout};
use wasmtime_wasi_http::{Error as HttpError, RequestOptions};

use super::*;
use crate::{
    net::Stack,
    news::{Teller, Wake},
    outgoing::{
        Outgoing, Whose,
        tests::{Server, ask_as, asks, nobody, request, speaker, stack},
    },
};

/// A container with a volume at `/ca`, and its log.
struct Container {
    own: Arc<OwnRoots>,
    whose: Arc<Whose>,
    volume: TempDir,
    log: TempDir,
}

impl Container {
    fn new(env: &[(&str, &str)]) -> Self {
        let (volume, folder) = (TempDir::new().unwrap(), TempDir::new().unwrap());
        let open = OwnedFd::from(File::open(volume.path()).unwrap());
        let directories = Arc::new(Directories::new([("/ca", open)].into_iter()));
        let (teller, _) = Teller::new(Arc::new(Wake::new().unwrap()));
        let file = File::create(folder.path().join("log")).unwrap();
        let id = ContainerId::from_bytes([7; 32]);
        let log = Arc::new(Log::new(id, teller, file, None, u64::MAX).unwrap());
        let own = Arc::new(OwnRoots::new(named(env, None).unwrap(), &directories, &log));
        Self { whose: asks(Some(Arc::clone(&own))), own, volume, log: folder }
    }

    fn write(&self, name: &str, text: impl AsRef<[u8]>) {
        fs::write(self.volume.path().join(name), text).unwrap();
    }

    /// Replaces what the volume holds as kubelets do.
    fn publish(&self, version: &str, text: &str) {
        let at = |name: &str| self.volume.path().join(name);
        fs::create_dir(at(version)).unwrap();
        fs::write(at(version).join("ca.crt"), text).unwrap();
        symlink(version, at("..data_tmp")).unwrap();
        fs::rename(at("..data_tmp"), at("..data")).unwrap();
        if !at("ca.crt").is_symlink() {
            symlink("..data/ca.crt", at("ca.crt")).unwrap();
        }
    }

    async fn ask(&self, outgoing: &Outgoing, uri: &str) -> Result<String, HttpError> {
        ask_as(&self.whose, outgoing, uri).await
    }

    /// The lines that the log was told.
    fn said(&self) -> Vec<String> {
        self.own.log.flush_here();
        let text = fs::read_to_string(self.log.path().join("log")).unwrap();
        text.lines().map(|line| line.splitn(3, ' ').nth(2).unwrap().to_owned()).collect()
    }
}

fn named(env: &[(&str, &str)], working_directory: Option<&str>) -> Option<Named> {
    let env: Vec<_> =
        env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Named::of(&env, working_directory)
}

/// A server with an authority's word, and where it is.
fn server(stack: &Stack, authority: &Authority) -> (Server, String) {
    let server = Server::start(stack, Some(speaker(authority, "web.test")));
    let uri = format!("https://web.test:{}/", server.at.port());
    (server, uri)
}

fn is_refused(answer: &Result<String, HttpError>) -> bool {
    matches!(answer, Err(HttpError::TlsCertificateError))
}

#[test]
fn the_variables_mean_what_they_mean_to_openssl_and_go() {
    let paths = |paths: &[&str]| paths.iter().map(PathBuf::from).collect::<Vec<_>>();
    for nothing in [&[][..], &[(FILE, "")], &[(DIRECTORIES, "")], &[(DIRECTORIES, "::")]] {
        assert_eq!(named(nothing, None), None, "{nothing:?}");
    }
    let file = named(&[(FILE, "/a/b")], Some("/work")).unwrap();
    assert_eq!((file.file, file.directories), (Some("/a/b".into()), vec![]));
    let both = named(&[(DIRECTORIES, "/a::b:"), ("OTHER", "/c"), (FILE, "d")], Some("/work"));
    let both = both.unwrap();
    assert_eq!(both.file, Some("/work/d".into()));
    assert_eq!(both.directories, paths(&["/a", "/work/b"]));
    assert_eq!(named(&[(FILE, "d")], None).unwrap().file, Some("/d".into()));
}

#[tokio::test]
async fn a_container_believes_whom_its_file_names_and_no_other_container_does() {
    let (stack, authority) = (stack(), Authority::new());
    let (server, uri) = server(&stack, &authority);
    let outgoing = Outgoing::trusting(&stack, nobody());
    let container = Container::new(&[(FILE, "/ca/ca.crt")]);
    container.write("ca.crt", format!("Beside it.\n{}", authority.pem()));
    for _ in 0..2 {
        container.ask(&outgoing, &uri).await.unwrap();
    }
    assert_eq!(server.connections.load(SeqCst), 1, "it is used again");

    // That connection is kept, but nobody whom this one believes vouched for it.
    let other = Container::new(&[(FILE, "/ca/ca.crt")]);
    other.write("ca.crt", Authority::new().pem());
    for _ in 0..2 {
        let refused = other.ask(&outgoing, &uri).await;
        assert!(is_refused(&refused), "{refused:?}");
    }
    assert_eq!(server.connections.load(SeqCst), 3);
    let said = other.said();
    let line = format!("F the certificate of web.test:{} is refused: ", server.at.port());
    assert!(said.len() == 1 && said[0].starts_with(&line), "{said:?}");
    assert!(said[0].ends_with("trusted are the authorities in [\"/ca/ca.crt\"]"), "{said:?}");

    container.ask(&outgoing, &uri).await.unwrap();
    assert_eq!(server.connections.load(SeqCst), 3, "its own is still kept");
    assert_eq!(container.said(), [""; 0]);
    let system = ask_as(&asks(None), &outgoing, &uri).await;
    assert!(matches!(system, Err(HttpError::ConfigurationError)), "{system:?}");
}

#[tokio::test]
async fn directories_are_believed_besides_the_file_or_the_system() {
    let stack = stack();
    let [system, file, one, two] = [(); 4].map(|()| Authority::new());
    roots::remember_this(system.pem());
    let all = [&system, &file, &one, &two].map(|authority| server(&stack, authority));
    let outgoing = Outgoing::trusting(&stack, nobody());
    for (env, expected) in [
        (&[(DIRECTORIES, "/ca/one:/ca/two")][..], [true, false, true, true]),
        (&[(DIRECTORIES, "/ca/two"), (FILE, "/ca/file")][..], [false, true, false, true]),
        (&[(FILE, "/ca/file")][..], [false, true, false, false]),
    ] {
        let container = Container::new(env);
        for name in ["one", "two", "two/deeper"] {
            fs::create_dir(container.volume.path().join(name)).unwrap();
        }
        container.write("file", file.pem());
        container.write("one/any-name", one.pem());
        container.write("one/README", "no certificate");
        container.write("two/b.pem", two.pem());
        for (link, to) in [("two/c", "b.pem"), ("two/d", "nowhere"), ("two/e", "/etc/passwd")] {
            symlink(to, container.volume.path().join(link)).unwrap();
        }
        for ((_, uri), expected) in all.iter().zip(expected) {
            let answer = container.ask(&outgoing, uri).await;
            assert_eq!(answer.is_ok(), expected, "{env:?}: {answer:?}");
            assert!(expected || is_refused(&answer), "{env:?}: {answer:?}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_was_replaced_is_read_again_and_no_connection_outlives_its_authority() {
    let (stack, first) = (stack(), Authority::new());
    let (server, uri) = server(&stack, &first);
    let outgoing = Outgoing::trusting(&stack, nobody());
    let container = Container::new(&[(FILE, "/ca/ca.crt")]);
    container.publish("..1", first.pem());
    container.ask(&outgoing, &uri).await.unwrap();
    // What is the same is not read again, so that its connections are kept.
    advance(HOLDS).await;
    container.ask(&outgoing, &uri).await.unwrap();
    assert_eq!(server.connections.load(SeqCst), 1);

    container.publish("..2", Authority::new().pem());
    container.ask(&outgoing, &uri).await.unwrap();
    advance(HOLDS).await;
    let refused = container.ask(&outgoing, &uri).await;
    assert!(is_refused(&refused), "{refused:?}");
    assert_eq!(server.connections.load(SeqCst), 2, "the old one was not asked");
    assert_eq!(outgoing.own.lock().unwrap().len(), 1, "and is not kept");

    container.publish("..3", first.pem());
    advance(HOLDS).await;
    container.ask(&outgoing, &uri).await.unwrap();
    // Somebody else's requests let go of what a container kept that has ended.
    let other = Container::new(&[(FILE, "/ca/ca.crt")]);
    drop(container);
    other.publish("..1", first.pem());
    other.ask(&outgoing, &uri).await.unwrap();
    assert_eq!(outgoing.own.lock().unwrap().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn who_cannot_be_read_is_told_once_and_until_it_is_mended_nobody_is_believed() {
    let (stack, authority) = (stack(), Authority::new());
    let (_server, uri) = server(&stack, &authority);
    let outgoing = Outgoing::trusting(&stack, nobody());
    let container = Container::new(&[(FILE, "/ca/ca.crt")]);
    let missing = "F https requests fail: SSL_CERT_FILE names /ca/ca.crt: No such file or \
                   directory (os error 2); mount a volume that has it there, or leave the \
                   variable empty";
    for _ in 0..2 {
        let failed = container.ask(&outgoing, &uri).await;
        assert!(matches!(failed, Err(HttpError::ConfigurationError)), "{failed:?}");
        advance(HOLDS).await;
    }
    assert_eq!(container.said(), [missing]);
    // Plain http is nobody's concern.
    let plain = Server::start(&stack, None);
    container.ask(&outgoing, &format!("http://web.test:{}/", plain.at.port())).await.unwrap();

    container.write("ca.crt", authority.pem());
    container.ask(&outgoing, &uri).await.unwrap();
    fs::remove_file(container.volume.path().join("ca.crt")).unwrap();
    advance(HOLDS).await;
    let failed = container.ask(&outgoing, &uri).await;
    assert!(matches!(failed, Err(HttpError::ConfigurationError)), "{failed:?}");
    assert!(outgoing.own.lock().unwrap().is_empty(), "no connection is kept");
    assert_eq!(container.said(), [missing, missing]);
}

#[tokio::test]
async fn what_is_no_bundle_is_named_with_what_to_do() {
    let large = format!("{}\n{}", Authority::new().pem(), "x".repeat(8 << 20));
    let outgoing = Outgoing::trusting(&stack(), nobody());
    for (env, why, mend) in [
        ((FILE, "/other/ca.crt"), "no volume of the container is there", "mount a volume"),
        ((FILE, "/ca/../ca.crt"), "a link leads out of its volume", "name certificates"),
        ((FILE, "/ca"), "that is no regular file", "name certificates"),
        ((FILE, "/ca/empty"), "there is no certificate in PEM", "put the authority's"),
        ((FILE, "/ca/large"), "it is too large", "there may be 8 MiB"),
        ((DIRECTORIES, "/ca/nowhere"), "No such file or directory", "mount a volume"),
        ((DIRECTORIES, "/ca/empty"), "Not a directory", "name certificates"),
        ((DIRECTORIES, "/ca/large:/ca/many"), "Not a directory", "name certificates"),
        ((DIRECTORIES, "/ca/many"), "it has too many files", "1024 files"),
    ] {
        let container = Container::new(&[env]);
        container.write("empty", "");
        container.write("large", &large);
        fs::create_dir(container.volume.path().join("many")).unwrap();
        if env.1 == "/ca/many" {
            (0..=MOST_FILES).for_each(|number| container.write(&format!("many/{number}"), ""));
        }
        let failed = container.ask(&outgoing, "https://web.test:1/").await;
        assert!(matches!(failed, Err(HttpError::ConfigurationError)), "{env:?}: {failed:?}");
        let said = container.said();
        let start = format!("F https requests fail: {} names ", env.0);
        assert!(said.len() == 1 && said[0].starts_with(&start), "{said:?}");
        assert!(said[0].contains(why) && said[0].contains(mend), "{said:?}");
    }
}

#[tokio::test]
async fn many_small_files_are_no_more_than_one_large() {
    let container = Container::new(&[(FILE, "/ca/ca.crt"), (DIRECTORIES, "/ca/d")]);
    container.write("ca.crt", Authority::new().pem());
    fs::create_dir(container.volume.path().join("d")).unwrap();
    for name in ["d/1", "d/2"] {
        container.write(name, "x".repeat(5 << 20));
    }
    assert!(container.own.roots().await.is_none());
    let said = container.said();
    assert!(said[0].contains("SSL_CERT_DIR names /ca/d/2: it is too large"), "{said:?}");
}

#[test]
fn where_a_volume_stalls_requests_time_out_and_one_look_waits_for_it() {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let container = Container::new(&[(FILE, "/ca/ca.crt")]);
        container.write("ca.crt", Authority::new().pem());
        // The one thread that may block waits, as for a volume.
        let (go_on, stalled) = std::sync::mpsc::channel::<()>();
        drop(spawn_blocking(move || stalled.recv()));
        let outgoing = Outgoing::trusting(&stack(), nobody());
        let time = Some(Duration::from_millis(1));
        for _ in 0..3 {
            let options = RequestOptions { connect_timeout: time, ..RequestOptions::default() };
            let request = request("https://web.test/");
            let left = outgoing.send(request, options, &container.whose).await.map(drop);
            assert!(matches!(left, Err(HttpError::ConnectionTimeout)), "{left:?}");
        }
        let looking = |state: &State| state.looking.as_ref().map(JoinHandle::id);
        let first = looking(&*container.own.state.lock().await);
        assert!(first.is_some());
        assert!(timeout(Duration::from_millis(1), container.own.roots()).await.is_err());
        assert_eq!(looking(&*container.own.state.lock().await), first);
        drop(go_on);
        let (one, other) = tokio::join!(container.own.roots(), container.own.roots());
        assert!(Arc::ptr_eq(&one.unwrap(), &other.unwrap()));
    });
}
