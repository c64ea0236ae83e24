//! What a list and a watch say together: the newest state of some objects.
//!
//! ```text
//! Listing ──▶ Listed ──▶ Watching ──┐
//!    ▲           ▲────── ended ─────┤
//!    └──────── 410, unreadable ─────┘
//! ```
//!
//! A feed never ends and never loses a change: when a watch ends it is resumed
//! where it was, and when that is no longer possible the whole is listed again.
//! It holds no objects; its users do ([`Holder`]), and replace what they hold
//! when told.

use std::{collections::VecDeque, io, marker::PhantomData, pin::Pin, time::Duration};

use futures::{FutureExt, StreamExt, TryStreamExt};
use http_body_util::BodyExt;
use kube::{
    Resource,
    api::{ListParams, WatchEvent, WatchParams},
    core::{ObjectList, Request, Status},
};
use rand::Rng;
use serde::de::DeserializeOwned;
use tokio::{
    io::AsyncRead,
    time::{Instant, sleep, timeout_at},
};
use tokio_util::{
    codec::{FramedRead, LinesCodec, LinesCodecError},
    io::StreamReader,
    sync::CancellationToken,
};

use crate::{
    Cluster, RequestError,
    request::{LIMIT, LIST_LIMIT},
    retry::Backoff,
};

/// Objects per page of a list, at most; client-go's page size. Of large ones fewer
/// are asked for, until a page of them is read.
const PAGE: u32 = 500;

/// Bytes of the longest line of a watch: an event with one object, which etcd
/// bounds to about 1.5 MiB, with room for its text form.
const LONGEST_LINE: usize = 16 << 20;

/// How long the server is asked to keep a watch, at least; the same again is
/// added at random. Source: client-go, `minWatchTimeout` in `tools/cache/reflector.go`.
const SHORTEST_WATCH: u32 = 300;

/// How much longer than asked for a silent watch is believed in.
const OVERTIME: Duration = Duration::from_secs(15);

/// A watch that lasted less than this is not a success: begin it again with a
/// growing wait.
const SHORT_WATCH: Duration = Duration::from_secs(1);

/// Refusals to resume a watch before the whole is listed again, as after the
/// server's store went back in time.
const RESUMPTIONS: u32 = 3;

/// Changes taken together before they are shown, so that a burst costs one copy
/// of what is held and still shows within milliseconds.
const BURST: usize = 512;

/// Who holds a feed's objects and shows them to others.
pub(crate) trait Holder<K> {
    /// Takes one piece of news; says whether there is something else to show
    /// now.
    fn take(&mut self, change: Change<K>) -> bool;

    /// Shows what is held now.
    fn show(&mut self);
}

/// A piece of news.
#[derive(Debug)]
pub(crate) enum Change<K> {
    /// These are all the objects there are.
    Replaced(Vec<K>),
    /// This object is new or changed.
    Applied(K),
    /// This object is gone; this is how it was last.
    Removed(K),
    /// A watch ended as watches do. It is resumed by the next call.
    Ended,
    /// A list or watch failed. It is tried again by the next call, after a wait.
    Interrupted(RequestError),
}

type Lines = FramedRead<Pin<Box<dyn AsyncRead + Send>>, LinesCodec>;

enum State {
    Listing,
    Listed { version: String },
    Watching { version: String, lines: Lines, began: Instant, until: Instant },
}

/// Objects of one kind under one path, chosen by a field selector.
pub(crate) struct Feed<K> {
    cluster: Cluster,
    path: Request,
    fields: Option<String>,
    state: State,
    /// Objects per page that are asked for now.
    page: u32,
    backoff: Backoff,
    /// Not before this is the server asked again.
    not_before: Option<Instant>,
    refused_resumptions: u32,
    kind: PhantomData<fn() -> K>,
}

/// Whether everything is listed again after a watch was refused so: what it went on
/// from is gone (410), or somebody is told that nothing may be known (403), who hears
/// only by the next list that it may be, as when an API server has just begun.
fn begins_anew(code: u16) -> bool {
    matches!(code, 403 | 410)
}

impl<K> std::fmt::Debug for Feed<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Feed").field("path", &self.path.url_path).finish_non_exhaustive()
    }
}

impl<K> Feed<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Send + 'static,
{
    /// A feed of the objects in `namespace` (or everywhere) that `fields`
    /// selects.
    pub(crate) fn new(cluster: &Cluster, namespace: Option<&str>, fields: Option<String>) -> Self {
        Self {
            cluster: cluster.clone(),
            path: Request::new(K::url_path(&(), namespace)),
            fields,
            state: State::Listing,
            page: PAGE,
            // The longest wait is what a node may lose after an outage.
            backoff: Backoff::new(Duration::from_millis(200), Duration::from_secs(5)),
            not_before: None,
            refused_resumptions: 0,
            kind: PhantomData,
        }
    }

    /// Waits for the next piece of news.
    ///
    /// Cancel-safe: what has been read of a watch stays in the feed, and a list
    /// that is given up is begun again.
    pub(crate) async fn next(&mut self) -> Change<K> {
        loop {
            if let Some(at) = self.not_before {
                tokio::time::sleep_until(at).await;
                self.not_before = None;
            }
            match &mut self.state {
                State::Listing => return self.list().await,
                State::Listed { version } => {
                    let version = version.clone();
                    if let Some(change) = self.watch(version).await {
                        return change;
                    }
                }
                State::Watching { lines, until, .. } => {
                    // Silence beyond what was agreed is an end too.
                    let line = timeout_at(*until, lines.next()).await.unwrap_or(None);
                    if let Some(change) = self.read(line) {
                        return change;
                    }
                }
            }
        }
    }

    /// Keeps a holder up to date until stopped.
    pub(crate) async fn keep(&mut self, holder: &mut impl Holder<K>, stop: &CancellationToken) {
        loop {
            // Cancel-safe: the feed keeps what it has read.
            let change = tokio::select! {
                biased;
                () = stop.cancelled() => return,
                change = self.next() => change,
            };
            let mut changed = holder.take(change);
            for _ in 0..BURST {
                let Some(change) = self.ready() else { break };
                changed |= holder.take(change);
            }
            if changed {
                holder.show();
            }
        }
    }

    /// What a watch has said already and [`Feed::next`] would return at once.
    pub(crate) fn ready(&mut self) -> Option<Change<K>> {
        loop {
            let State::Watching { lines, .. } = &mut self.state else { return None };
            let line = lines.next().now_or_never()?;
            if let Some(change) = self.read(line) {
                return Some(change);
            }
        }
    }

    /// Lists everything, page by page.
    async fn list(&mut self) -> Change<K> {
        let mut all = VecDeque::new();
        let mut more = None;
        loop {
            let params = ListParams {
                field_selector: self.fields.clone(),
                limit: Some(self.page),
                continue_token: more.take(),
                ..ListParams::default()
            };
            let page = async {
                let request = self.path.list(&params)?;
                self.cluster.call::<ObjectList<K>>(request, LIST_LIMIT).await
            };
            match page.await {
                Ok(page) => {
                    all.extend(page.items);
                    more = page.metadata.continue_.filter(|token| !token.is_empty());
                    if more.is_none() {
                        self.succeeded();
                        self.refused_resumptions = 0;
                        // The large ones may be gone by the next list.
                        self.page = self.page.saturating_mul(2).min(PAGE);
                        let version = page.metadata.resource_version.unwrap_or_default();
                        self.state = State::Listed { version };
                        return Change::Replaced(all.into());
                    }
                }
                // Whoever may make large objects holds nobody up. A list goes on
                // with the size of page that it began with: begin with page one.
                Err(RequestError::TooLarge { .. }) if self.page > 1 => {
                    self.page /= 2;
                    all.clear();
                }
                // Also when a continuation expired (410): begin with page one.
                Err(error) => return self.failed(error),
            }
        }
    }

    /// Opens the watch; None once it is open.
    async fn watch(&mut self, version: String) -> Option<Change<K>> {
        let seconds = SHORTEST_WATCH + rand::rng().random_range(0..=SHORTEST_WATCH);
        let params = WatchParams {
            field_selector: self.fields.clone(),
            timeout: Some(seconds),
            ..WatchParams::default()
        };
        let request = match self.path.watch(&params, &version) {
            Ok(request) => request,
            Err(error) => return Some(self.failed(error.into())),
        };
        match self.cluster.open_watch(request, LIMIT).await {
            Ok(response) => {
                let bytes = response.into_body().into_data_stream().map_err(io::Error::other);
                let reader: Pin<Box<dyn AsyncRead + Send>> = Box::pin(StreamReader::new(bytes));
                let began = Instant::now();
                self.state = State::Watching {
                    version,
                    lines: FramedRead::new(reader, LinesCodec::new_with_max_length(LONGEST_LINE)),
                    began,
                    until: began + Duration::from_secs(seconds.into()) + OVERTIME,
                };
                None
            }
            Err(error) => {
                if error.code().is_some() && error.code() != Some(429) {
                    self.refused_resumptions += 1;
                }
                let is_anew = error.code().is_some_and(begins_anew);
                if is_anew || self.refused_resumptions >= RESUMPTIONS {
                    self.state = State::Listing;
                }
                Some(self.failed(error))
            }
        }
    }

    /// Takes one line of a watch, or its end; None for a bookmark.
    fn read(&mut self, line: Option<Result<String, LinesCodecError>>) -> Option<Change<K>> {
        let line = match line {
            Some(Ok(line)) => line,
            Some(Err(error)) => return Some(self.broken(error)),
            None => return Some(self.ended()),
        };
        let State::Watching { version, .. } = &mut self.state else {
            return None;
        };
        let event = match serde_json::from_str::<WatchEvent<K>>(&line) {
            Ok(event) => event,
            Err(source) => {
                self.state = State::Listing;
                return Some(self.failed(RequestError::Unreadable { source }));
            }
        };
        let change = match event {
            WatchEvent::Bookmark(mark) => {
                *version = mark.metadata.resource_version;
                return None;
            }
            WatchEvent::Error(status) => {
                let version = std::mem::take(version);
                return Some(self.refused(status, version));
            }
            WatchEvent::Added(object) | WatchEvent::Modified(object) => Change::Applied(object),
            WatchEvent::Deleted(object) => Change::Removed(object),
        };
        if let Change::Applied(object) | Change::Removed(object) = &change
            && let Some(newer) = &object.meta().resource_version
        {
            version.clone_from(newer);
        }
        self.refused_resumptions = 0;
        Some(change)
    }

    /// The server ended the watch with a reason.
    fn refused(&mut self, status: Box<Status>, version: String) -> Change<K> {
        self.state = if begins_anew(status.code) {
            State::Listing
        } else {
            self.refused_resumptions += 1;
            if self.refused_resumptions >= RESUMPTIONS {
                State::Listing
            } else {
                State::Listed { version }
            }
        };
        self.failed(RequestError::Refused { status, retry_after: None })
    }

    /// The watch ended without a reason.
    fn ended(&mut self) -> Change<K> {
        let (version, began) = match std::mem::replace(&mut self.state, State::Listing) {
            State::Watching { version, began, .. } => (version, began),
            State::Listing | State::Listed { .. } => return Change::Ended,
        };
        self.state = State::Listed { version };
        if began.elapsed() < SHORT_WATCH {
            self.not_before = Some(Instant::now() + self.backoff.wait(None));
        } else {
            self.succeeded();
        }
        Change::Ended
    }

    /// The watch's connection broke, or its line was too long.
    fn broken(&mut self, error: LinesCodecError) -> Change<K> {
        self.state = match std::mem::replace(&mut self.state, State::Listing) {
            State::Watching { version, .. } => State::Listed { version },
            State::Listing | State::Listed { .. } => State::Listing,
        };
        self.failed(RequestError::Broken { source: Box::new(error) })
    }

    fn failed(&mut self, error: RequestError) -> Change<K> {
        self.not_before = Some(Instant::now() + self.backoff.wait(error.retry_after()));
        Change::Interrupted(error)
    }

    fn succeeded(&mut self) {
        self.backoff.reset();
        self.not_before = None;
    }
}

/// Whether `newer` is a later version of an object than `held`.
///
/// Versions of the API's own objects are whole numbers that grow (Kubernetes
/// 1.35 made that part of the contract); what is not a number is taken as newer.
pub(crate) fn is_newer(newer: Option<&str>, held: Option<&str>) -> bool {
    let number = |version: Option<&str>| version.and_then(|text| text.parse::<u128>().ok());
    match (number(newer), number(held)) {
        (Some(newer), Some(held)) => newer > held,
        _ => newer != held,
    }
}

/// Waits as long as a failed step asks. For loops without a feed.
pub(crate) async fn pause(backoff: &mut Backoff, error: &RequestError) {
    sleep(backoff.wait(error.retry_after())).await;
}
