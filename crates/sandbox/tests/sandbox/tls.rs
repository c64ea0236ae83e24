//! Guests that call servers by https, and believe whom their container names.

use std::{
    fs,
    io::Read as _,
    net::{SocketAddr, TcpListener},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
};

use krustlet_protocol::{ExecOutcome, SandboxReply};
use krustlet_testkit::{Authority, serve_https};
use tempfile::TempDir;

use crate::{
    code::compiled,
    fixture::{Make, Sandbox, Zygote},
    guests::exec,
    http::serve_as,
    sockets::network,
};

const FILE: &str = "SSL_CERT_FILE";

/// A server that has an authority's word.
fn server(authority: &Authority) -> SocketAddr {
    let listener = TcpListener::bind("10.77.9.9:0").unwrap();
    let at = listener.local_addr().unwrap();
    serve_https(listener, authority.server("10.77.9.9"), "believed\n");
    at
}

/// A volume as kubelets lay it out.
fn publish(volume: &Path, authority: &Authority) {
    fs::create_dir(volume.join("..1")).unwrap();
    fs::write(volume.join("..1/ca.crt"), authority.pem()).unwrap();
    symlink("..1", volume.join("..data")).unwrap();
    symlink("..data/ca.crt", volume.join("ca.crt")).unwrap();
}

/// With a volume at `/etc/ca`, read-only.
fn believing(make: Make, variable: &str, value: &str, volume: &Path) -> Make {
    let mounts: Vec<(PathBuf, String, bool)> = vec![(volume.into(), "/etc/ca".into(), false)];
    Make { env: vec![(variable.into(), value.into())], mounts, ..make }
}

fn fetch(sandbox: &Sandbox, variable: &str, value: &str, volume: &Path, url: &str) -> String {
    let make = Make::command("fetch.wasm", &["fetch", url]);
    let (id, _) = sandbox.run(believing(make, variable, value, volume));
    sandbox.output(&id)
}

/// A pod, a volume with an authority, and a server that has its word.
struct Bed {
    sandbox: Sandbox,
    volume: TempDir,
    url: String,
    _zygote: Zygote,
}

impl Bed {
    fn new() -> Self {
        let zygote = Zygote::start();
        let sandbox = zygote.sandbox();
        sandbox.network("pod", &network(&["10.77.0.1"]));
        let (authority, volume) = (Authority::new(), sandbox.volume());
        publish(volume.path(), &authority);
        let url = format!("https://{}/", server(&authority));
        Self { sandbox, volume, url, _zygote: zygote }
    }
}

pub(crate) fn a_guest_believes_whom_its_container_names() {
    let Bed { sandbox, volume, url, .. } = &Bed::new();
    for (variable, value) in
        [(FILE, "/etc/ca/ca.crt"), ("SSL_CERT_DIR", "/etc/ca"), (FILE, "etc/ca/../ca/ca.crt")]
    {
        let said = fetch(sandbox, variable, value, volume.path(), url);
        // As for any guest, `..` leads nowhere above a volume.
        let expected =
            if value.contains("..") { "ConfigurationError\n" } else { "200\nbelieved\n" };
        assert!(said.ends_with(expected), "{variable}={value}: {said}");
    }

    let stranger = sandbox.volume();
    publish(stranger.path(), &Authority::new());
    let said = fetch(sandbox, FILE, "/etc/ca/ca.crt", stranger.path(), url);
    assert!(said.contains("TlsCertificateError\n"), "{said}");
    assert!(said.contains(&format!("the certificate of {} is refused", &url[8..url.len() - 1])));
    // What it names is its own file, never the node's.
    let host = volume.path().join("ca.crt");
    let said = fetch(sandbox, FILE, host.to_str().unwrap(), volume.path(), url);
    assert!(said.contains("ConfigurationError\n"), "{said}");
    assert!(said.contains("no volume of the container is there; mount a volume"), "{said}");
}

pub(crate) fn servers_and_execs_believe_whom_their_container_names() {
    let Bed { sandbox, volume, url, .. } = &Bed::new();
    let web = serve_as(sandbox, 20_000, |make| {
        let make = make.code(compiled("http3.wasm"));
        believing(make, FILE, "/etc/ca/ca.crt", volume.path())
    });
    for _ in 0..2 {
        let mut answer = String::new();
        web.send(&format!("/fetch?url={url}")).read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("believed\n"), "{answer}");
    }

    // It waits for somebody who never answers; its exec asks another.
    let silent = TcpListener::bind("10.77.9.9:0").unwrap();
    let waits = format!("http://{}/", silent.local_addr().unwrap());
    let make = Make::command("fetch.wasm", &["fetch", &waits]);
    let id = sandbox.start(believing(make, FILE, "/etc/ca/ca.crt", volume.path()));
    sandbox.running(&id);
    let (request, _stdin, mut stdout, _stderr) = exec(sandbox, &id, &["fetch", url]);
    let mut output = String::new();
    stdout.read_to_string(&mut output).unwrap();
    assert_eq!(output, "200\nbelieved\n");
    let ended = ExecOutcome { exit_code: 0, message: String::new() };
    assert_eq!(sandbox.connection.answer(request), Some(SandboxReply::Exec(ended)));
}
