//! The clients: blocking, a thread each, so that little of the time is theirs.

use std::{
    fmt,
    io::{Read, Write},
    net::{Shutdown, SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use krustlet_testkit::Summary;

use crate::Failure;

/// The most that is read or written at once, in bytes.
const PIECE: usize = 256 << 10;

/// A server that does nothing for so long is broken.
const PATIENCE: Duration = Duration::from_secs(10);

fn connect(at: SocketAddr) -> Result<TcpStream, Failure> {
    let connection = TcpStream::connect_timeout(&at, PATIENCE)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_write_timeout(Some(PATIENCE))?;
    connection.set_nodelay(true)?;
    Ok(connection)
}

/// Bytes a second that the server has taken to their end.
#[expect(clippy::cast_precision_loss, reason = "no figure is that exact")]
pub(crate) fn send(at: SocketAddr, time: Duration) -> Result<f64, Failure> {
    let mut connection = connect(at)?;
    let bytes = vec![b'.'; PIECE];
    let (begin, mut sent) = (Instant::now(), 0_u64);
    while begin.elapsed() < time {
        connection.write_all(&bytes)?;
        sent += bytes.len() as u64;
    }
    connection.shutdown(Shutdown::Write)?;
    // It closes when it has read everything.
    while connection.read(&mut [0; 64])? > 0 {}
    Ok(sent as f64 / begin.elapsed().as_secs_f64())
}

/// Bytes a second that come from the server.
#[expect(clippy::cast_precision_loss, reason = "no figure is that exact")]
pub(crate) fn receive(at: SocketAddr, time: Duration) -> Result<f64, Failure> {
    let mut connection = connect(at)?;
    let mut bytes = vec![0; PIECE];
    let (begin, mut received) = (Instant::now(), 0_u64);
    while begin.elapsed() < time {
        match connection.read(&mut bytes)? {
            0 => return Err("the server has ended the connection".into()),
            count => received += count as u64,
        }
    }
    Ok(received as f64 / begin.elapsed().as_secs_f64())
}

/// Connections made one after another by several clients.
#[derive(Debug)]
pub(crate) struct Made {
    rate: f64,
    each: Summary,
}

impl fmt::Display for Made {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [p50, p99] = [50, 99].map(|percent| self.each.percentile(percent).as_micros());
        write!(f, "{:.0} {p50} {p99}", self.rate)
    }
}

#[expect(clippy::cast_precision_loss, reason = "no figure is that exact")]
pub(crate) fn connections(at: SocketAddr, clients: usize, time: Duration) -> Result<Made, Failure> {
    let begin = Instant::now();
    let client = move || {
        let mut each = Vec::new();
        loop {
            let asked = Instant::now();
            if begin.elapsed() >= time {
                return Ok::<_, Failure>(each);
            }
            once(at)?;
            each.push(asked.elapsed());
        }
    };
    let clients: Vec<_> = (0..clients).map(|_| thread::spawn(client)).collect();
    let mut each = Vec::new();
    for client in clients {
        each.extend(client.join().map_err(|_| "a client failed")??);
    }
    if each.is_empty() {
        return Err("no connection was made in that time".into());
    }
    Ok(Made { rate: each.len() as f64 / begin.elapsed().as_secs_f64(), each: Summary::of(each) })
}

/// One connection, from its start to the end that both sides know of.
fn once(at: SocketAddr) -> Result<(), Failure> {
    let mut connection = connect(at)?;
    connection.write_all(b".")?;
    connection.shutdown(Shutdown::Write)?;
    let mut echo = Vec::new();
    connection.read_to_end(&mut echo)?;
    if echo == b"." { Ok(()) } else { Err(format!("that is no echo: {echo:?}").into()) }
}
