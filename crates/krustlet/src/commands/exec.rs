//! `krustlet exec`.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use anyhow::{Result, bail};
use bytes::{Buf, Bytes, BytesMut};
use futures::TryStreamExt;
use http::Method;
use http_body_util::{BodyExt, StreamBody, combinators::UnsyncBoxBody};
use krustlet_server::exec::{OUTCOME, Outcome};
use tokio_util::io::ReaderStream;

use crate::{
    cli::ExecArgs,
    client::{self, Answer, Local},
    paths::Root,
};

/// Runs the program and ends with its exit code.
pub(crate) async fn run(args: ExecArgs) -> Result<ExitCode> {
    let local = Local::new(Root::new(args.root.root_dir).socket());
    let mut query = url::form_urlencoded::Serializer::new(String::new());
    if let Some(container) = &args.container {
        query.append_pair("container", container);
    }
    for argument in &args.command {
        query.append_pair("command", argument);
    }
    let path = client::path(&["exec", &args.pod.namespace, &args.pod.name]);
    let path = format!("{path}?{}", query.finish());
    let body = if args.stdin { stdin() } else { client::empty() };
    let answer = local.send(Method::POST, &path, body).await?;
    match copy(answer).await? {
        // A program's code is of 8 bits, as everywhere.
        Outcome::ExitCode(code) => Ok(ExitCode::from(code.to_le_bytes()[0])),
        Outcome::Error(why) => bail!("{why}"),
    }
}

fn stdin() -> UnsyncBoxBody<Bytes, io::Error> {
    let pieces = ReaderStream::new(tokio::io::stdin()).map_ok(hyper::body::Frame::data);
    StreamBody::new(pieces).boxed_unsync()
}

async fn copy(mut answer: Answer) -> Result<Outcome> {
    let mut buffer = BytesMut::new();
    loop {
        while let Some((channel, bytes)) = take_frame(&mut buffer) {
            match channel {
                1 => io::stdout().write_all(&bytes).and_then(|()| io::stdout().flush())?,
                2 => io::stderr().write_all(&bytes)?,
                OUTCOME => return client::read(&bytes),
                other => bail!("the agent is of another version: it sent channel {other}"),
            }
        }
        match answer.piece().await? {
            Some(piece) => buffer.extend_from_slice(&piece),
            None => bail!("the agent went away before the program ended"),
        }
    }
}

/// Takes a whole frame from the front, if one is there.
fn take_frame(buffer: &mut BytesMut) -> Option<(u8, BytesMut)> {
    let head: [u8; 5] = buffer.get(..5)?.try_into().ok()?;
    let size = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if buffer.len() < 5 + size {
        return None;
    }
    buffer.advance(5);
    Some((head[0], buffer.split_to(size)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_taken_whole() {
        let mut buffer = BytesMut::from(&[1, 0, 0, 0, 2, b'h'][..]);
        assert_eq!(take_frame(&mut buffer), None);
        buffer.extend_from_slice(b"i\x03");
        assert_eq!(take_frame(&mut buffer), Some((1, BytesMut::from("hi"))));
        assert_eq!(take_frame(&mut buffer), None);
    }
}
