//! A machine of its own for each test: a root directory, and the built program.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    process::{Output, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufReader},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    time::timeout,
};

use crate::registry::Registry;

/// For one command; a cold compilation of an example takes a second.
pub(crate) const LIMIT: Duration = Duration::from_mins(2);

/// A root directory of its own, short enough for sockets.
pub(crate) struct Machine {
    pub(crate) root: tempfile::TempDir,
    /// Given to every command.
    pub(crate) env: Vec<(&'static str, PathBuf)>,
}

impl Machine {
    pub(crate) fn new() -> Self {
        assert!(rustix::process::geteuid().is_root(), "sandboxes need root: run the tests as root");
        let root = tempfile::Builder::new().prefix("kr").tempdir().unwrap();
        Self { root, env: Vec::new() }
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        self.command_of(Path::new(env!("CARGO_BIN_EXE_krustlet")), arguments)
    }

    /// A command of this program.
    pub(crate) fn command_of(&self, program: &Path, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("KRUSTLET_ROOT_DIR", self.root.path())
            .env_remove("NO_COLOR")
            .env_remove("KRUSTLET_LOG")
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    pub(crate) async fn krustlet(&self, arguments: &[&str]) -> Output {
        output(&mut self.command(arguments)).await
    }

    /// Runs a command that must succeed and gives what it printed.
    pub(crate) async fn ok(&self, arguments: &[&str]) -> String {
        let output = self.krustlet(arguments).await;
        assert!(output.status.success(), "{arguments:?}: {}", stderr(&output));
        stdout(&output)
    }

    /// Writes a file below the root directory and gives its path.
    pub(crate) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path = self.root.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_owned()
    }

    /// Where a file below the root directory is.
    pub(crate) fn path(&self, name: &str) -> String {
        self.root.path().join(name).to_str().unwrap().to_owned()
    }

    /// A manifest with the guest `hello` beside it.
    pub(crate) fn manifest(&self, text: &str) -> String {
        self.write("hello.wasm", std::fs::read(guest("hello.wasm")).unwrap());
        self.write("pod.yaml", text)
    }

    /// Lets every command speak plain HTTP to this registry.
    pub(crate) fn trust(&mut self, registry: &Registry) {
        let file = self.write("registries.yaml", format!("plainHTTP: [\"{}\"]", registry.address));
        self.env.push(("KRUSTLET_REGISTRY_CONFIG", file.into()));
    }

    /// Waits until a command prints this.
    pub(crate) async fn until(&self, arguments: &[&str], words: &str) {
        let what = format!("{arguments:?} shows {words:?}");
        krustlet_testkit::eventually(&what, LIMIT, async || {
            stdout(&self.krustlet(arguments).await).contains(words)
        })
        .await;
    }

    /// Waits until no agent answers any more.
    pub(crate) async fn until_alone(&self) {
        krustlet_testkit::eventually("the agent ends with its last pod", LIMIT, async || {
            !self.krustlet(&["ps"]).await.status.success()
        })
        .await;
    }

    /// What all instances of the one container use; `stats` prints one row.
    pub(crate) async fn memory(&self) -> String {
        let stats = self.ok(&["stats"]).await;
        let (heads, row) = stats.split_once('\n').unwrap();
        let column = heads.find("MEMORY").unwrap()..heads.find("POD SOCKETS").unwrap();
        row.get(column).unwrap_or_default().trim().to_owned()
    }
}

pub(crate) async fn output(command: &mut Command) -> Output {
    timeout(LIMIT, command.output()).await.expect("the command ends").unwrap()
}

pub(crate) fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

pub(crate) fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

pub(crate) fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

pub(crate) fn example(path: &str) -> String {
    project().join("examples").join(path).to_str().unwrap().to_owned()
}

pub(crate) fn guest(name: &str) -> String {
    krustlet_testkit::guest(name).to_str().unwrap().to_owned()
}

/// Waits for the end and gives the exit code.
pub(crate) async fn end(child: &mut Child) -> i32 {
    timeout(LIMIT, child.wait()).await.expect("the program ends").unwrap().code().unwrap()
}

/// Ctrl-C.
pub(crate) fn interrupt(child: &Child) {
    let pid = Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
    kill_process(pid, Signal::INT).unwrap();
}

/// A port that was free a moment ago.
pub(crate) async fn free_port() -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    listener.local_addr().unwrap().port()
}

/// Sends a request; its answer is read by [`answer`].
pub(crate) async fn ask(port: u16, path: &str) -> std::io::Result<TcpStream> {
    ask_at((Ipv4Addr::LOCALHOST, port).into(), path).await
}

/// Sends a request elsewhere.
pub(crate) async fn ask_at(at: SocketAddr, path: &str) -> std::io::Result<TcpStream> {
    let mut stream = TcpStream::connect(at).await?;
    let request = format!("GET {path} HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    Ok(stream)
}

/// The whole answer, with its head.
pub(crate) async fn answer(stream: TcpStream) -> std::io::Result<String> {
    let mut text = String::new();
    let mut stream = BufReader::new(stream);
    timeout(LIMIT, stream.read_to_string(&mut text)).await.expect("an answer comes")?;
    Ok(text)
}

/// Waits until a request is answered there. Connections are refused before, or
/// reset: the agent takes the port before its guest listens on it.
pub(crate) async fn until_served(port: u16) {
    krustlet_testkit::eventually("the port is served", LIMIT, async || {
        let Ok(asked) = ask(port, "/").await else { return false };
        answer(asked).await.is_ok_and(|text| text.starts_with("HTTP/1.1 200 "))
    })
    .await;
}
