//! The thread that runs guests, each a future, as its containers are started.
//!
//! ```text
//! control thread ──Order──▶ this thread: a task per container, exec and visit
//!                ◀──News──
//! ```
//!
//! One thread, so that a sandbox with one pod stays small; guests yield to each
//! other at every epoch ([`ticker`](crate::ticker)). Only connections of http
//! guests are shared out to others ([`threads`](crate::threads)). File operations
//! and logs use a few more threads, which end when they have nothing to do.

use std::{
    any::Any,
    collections::HashMap,
    io,
    panic::{self, AssertUnwindSafe},
    sync::Arc,
    thread,
    time::Duration,
};

use krustlet_protocol::{ExecOutcome, Failure, GuestKind};
use tokio::{
    sync::mpsc,
    task::{Id, JoinSet},
    time::{sleep, sleep_until},
};

use crate::{
    container::{Container, Stop, now},
    exec::Exec,
    exit::{Ending, KILLED, STOPPED},
    http,
    log::{LogStream, Stream},
    news::{News, RequestId, Teller},
    program::Program,
    run::{Session, run},
    threads::{self, STACK, Threads},
    ticker::{Metered, Ticker},
    visit::{Answer, Visit},
};

/// Orders that may wait: starts of a whole dense node at once.
const ORDERS: usize = 16_384;

/// How long a container's end waits for what its program has written to its
/// connections. A pod's process may end with its last container, and peers that
/// do not read must not hold up a Job.
const SENDING_TIME: Duration = Duration::from_secs(10);

/// What the guests' thread is to do.
pub(crate) enum Order {
    Start(Arc<Container>),
    Exec(Exec),
    Visit(Visit),
}

/// Hands orders to the guests' thread.
#[derive(Debug)]
pub(crate) struct Guests {
    orders: mpsc::Sender<Order>,
}

impl Guests {
    /// Starts the thread, on a node with so many cores.
    ///
    /// # Errors
    ///
    /// When the system gives no thread or no descriptors.
    pub(crate) fn start(teller: Teller, ticker: Arc<Ticker>, cores: usize) -> io::Result<Self> {
        let (orders, taken) = mpsc::channel(ORDERS);
        let runtime = threads::runtime()?;
        let threads = Threads::new(runtime.handle().clone(), cores);
        let thread = thread::Builder::new().name("guests".into()).stack_size(STACK);
        thread.spawn(move || {
            let end = panic::catch_unwind(AssertUnwindSafe(|| {
                runtime.block_on(Host::new(teller.clone(), ticker, threads).run(taken));
            }));
            if let Err(panic) = end {
                teller.tell(News::HostFailed { what: panic_text(&*panic) });
            }
        })?;
        Ok(Self { orders })
    }

    /// # Errors
    ///
    /// When more orders wait than ever should.
    pub(crate) fn order(&self, order: Order) -> Result<(), Failure> {
        self.orders.try_send(order).map_err(|_| Failure::Failed {
            message: "the sandbox has more to start than it can take".into(),
        })
    }
}

/// What a task was about, and how it ended.
enum Finished {
    Container(Arc<Container>, Ending),
    Exec(RequestId, ExecOutcome),
    /// It has been answered.
    Visit,
    /// The host failed before it was answered, or after.
    VisitFailed(Answer, String),
}

/// Whose task it is, should it panic.
enum Owner {
    Container(Arc<Container>),
    Exec(RequestId),
    Visit(Answer),
}

struct Host {
    teller: Teller,
    ticker: Arc<Ticker>,
    threads: Arc<Threads>,
    tasks: JoinSet<Finished>,
    owners: HashMap<Id, Owner>,
}

impl Host {
    fn new(teller: Teller, ticker: Arc<Ticker>, threads: Threads) -> Self {
        let threads = Arc::new(threads);
        Self { teller, ticker, threads, tasks: JoinSet::new(), owners: HashMap::new() }
    }

    /// Runs until the control thread is gone, and that is until the process is.
    async fn run(mut self, mut orders: mpsc::Receiver<Order>) {
        loop {
            tokio::select! {
                biased;
                // Both are cancel-safe, and no arm awaits in its body. Ends
                // first: they make room.
                Some(ended) = self.tasks.join_next_with_id() => self.finish(ended),
                order = orders.recv() => match order {
                    Some(order) => self.begin(order),
                    None => return,
                },
            }
        }
    }

    fn begin(&mut self, order: Order) {
        let ticker = Arc::clone(&self.ticker);
        let (task, owner) = match order {
            Order::Start(container) => {
                let owner = Owner::Container(Arc::clone(&container));
                let threads = Arc::clone(&self.threads);
                let task = self.tasks.spawn(async move {
                    let ending = run_container(&container, ticker, &threads).await;
                    // The end is told after all output is in the log.
                    container.log.flush().await;
                    Finished::Container(container, ending)
                });
                (task, owner)
            }
            Order::Exec(exec) => {
                let request = exec.request;
                let task = self
                    .tasks
                    .spawn(async move { Finished::Exec(request, exec.run(ticker).await) });
                (task, Owner::Exec(request))
            }
            Order::Visit(visit) => {
                let (answer, teller) = (visit.answer.clone(), self.teller.clone());
                let task = self.tasks.spawn(async move {
                    visit.run(teller).await;
                    Finished::Visit
                });
                (task, Owner::Visit(answer))
            }
        };
        self.owners.insert(task.id(), owner);
    }

    fn finish(&mut self, ended: Result<(Id, Finished), tokio::task::JoinError>) {
        let finished = match ended {
            Ok((task, finished)) => {
                self.owners.remove(&task);
                finished
            }
            Err(error) => {
                let Some(owner) = self.owners.remove(&error.id()) else { return };
                let what = match error.try_into_panic() {
                    Ok(panic) => panic_text(&*panic),
                    Err(error) => error.to_string(),
                };
                match owner {
                    Owner::Container(container) => {
                        Finished::Container(container, Ending::host_failed(&what))
                    }
                    Owner::Exec(request) => {
                        let Ending { code, message, .. } = Ending::host_failed(&what);
                        Finished::Exec(request, ExecOutcome { exit_code: code, message })
                    }
                    Owner::Visit(answer) => {
                        Finished::VisitFailed(answer, Ending::host_failed(&what).message)
                    }
                }
            }
        };
        self.teller.tell(match finished {
            Finished::Container(container, ending) => {
                // What still runs beside it ends with it.
                container.stop(Stop::Ended);
                container.release_ports();
                let exit = ending.report(container.started_at(), now());
                News::Exited { id: container.spec.id.clone(), exit }
            }
            Finished::Exec(request, outcome) => News::ExecEnded { request, outcome },
            Finished::Visit => return,
            Finished::VisitFailed(answer, why) => return answer.give(&self.teller, Err(why)),
        });
    }
}

async fn run_container(
    container: &Arc<Container>,
    ticker: Arc<Ticker>,
    threads: &Threads,
) -> Ending {
    let ending = run_program(container, ticker, threads).await;
    tokio::select! {
        biased;
        // All may be dropped: they only wait.
        () = container.stack.all_is_sent() => {}
        () = out_of_time(container) => {}
        () = sleep(SENDING_TIME) => {}
    }
    ending
}

/// Returns when nothing of the program is left but what is being sent for it.
async fn run_program(container: &Arc<Container>, ticker: Arc<Ticker>, threads: &Threads) -> Ending {
    if let (Program::Http(handler), GuestKind::Http(limits)) =
        (&*container.program, &container.spec.guest)
    {
        return http::serve(container, handler, limits, ticker, threads).await;
    }
    let entered = {
        let container = Arc::clone(container);
        move || container.entered()
    };
    let session = Session {
        args: container.spec.args.clone(),
        stdin: None,
        stdout: Box::new(LogStream::new(Arc::clone(&container.log), Stream::Stdout)),
        stderr: Box::new(LogStream::new(Arc::clone(&container.log), Stream::Stderr)),
        listens: true,
    };
    let guest = run(container, session, entered);
    let guest = Metered::new(guest, ticker, Arc::clone(&container.usage));
    tokio::select! {
        biased;
        // Dropping the guest ends it: it yields at each epoch and host call.
        // These programs have no way to hear that they are to stop, so waiting
        // for the end of the grace period would only take longer.
        stop = stopped(container) => Ending::stopped(match stop {
            Stop::By(_) | Stop::No => STOPPED,
            Stop::Now | Stop::Ended => KILLED,
        }),
        ending = guest => ending,
    }
}

/// Waits until the container is told to stop.
pub(crate) async fn stopped(container: &Container) -> Stop {
    let mut stop = container.stopping();
    match stop.wait_for(|stop| *stop != Stop::No).await {
        Ok(stop) => *stop,
        // The sender is in the container.
        Err(_) => Stop::Ended,
    }
}

/// Waits until the container's time is over: it was told to end at once, or has
/// ended, or its grace period has passed.
pub(crate) async fn out_of_time(container: &Container) {
    let mut stop = container.stopping();
    loop {
        let told = *stop.borrow_and_update();
        let end = match told {
            Stop::Now | Stop::Ended => return,
            Stop::By(end) => Some(end),
            Stop::No => None,
        };
        tokio::select! {
            // Both may be dropped and asked again.
            changed = stop.changed() => if changed.is_err() { return },
            () = sleep_until(end.unwrap_or_else(std::time::Instant::now).into()),
                if end.is_some() => return,
        }
    }
}

pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(ToString::to_string)
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "a panic without words".into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::news::Wake;

    /// A visit that says it is made, where it has an answer to give, and then panics.
    async fn fail(answer: Option<Answer>, teller: Teller) -> Finished {
        if let Some(answer) = answer {
            answer.give(&teller, Ok(()));
        }
        tokio::task::yield_now().await;
        panic!("the host fails");
    }

    #[test]
    fn a_visit_that_fails_is_answered_unless_it_was() {
        let runtime = threads::runtime().unwrap();
        for was_answered in [false, true] {
            let wake = Arc::new(Wake::new().unwrap());
            let (teller, news) = Teller::new(Arc::clone(&wake));
            let threads = Threads::new(runtime.handle().clone(), 1);
            let mut host = Host::new(teller.clone(), Arc::new(Ticker::new(wake)), threads);
            let request = RequestId { connection: 1, frame: 2 };
            let answer = Answer::to(request);
            let given = was_answered.then(|| answer.clone());
            let task = host.tasks.spawn_on(fail(given, teller), runtime.handle());
            host.owners.insert(task.id(), Owner::Visit(answer));
            let ended = runtime.block_on(host.tasks.join_next_with_id()).unwrap();
            host.finish(ended);
            let told: Vec<_> = news.try_iter().collect();
            let [News::Visited { request: of, made }] = &told[..] else { panic!("{told:?}") };
            assert_eq!((*of, made.is_ok()), (request, was_answered), "{made:?}");
        }
    }
}
