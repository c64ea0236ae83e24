//! Fields of requests and answers that guests hold.
//!
//! They are in the sandbox's own memory. Each value takes what it needs there out of
//! its container's memory, for as long as anybody has it: the guest in any of its
//! handles, or whoever sends it.
//!
//! ```text
//! guest ──from-list, append, set, clone──▶ wasmtime's rules ──▶ counted ──▶ FieldMap
//! other side's request or answer ──────────────────────────────▶ counted ──▶ FieldMap
//! ```

use std::{
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, header::Entry};
use hyper::body::{Body, Frame, SizeHint};
use wasmtime::{
    StoreContextMut,
    component::{ComponentNamedList, Linker, Lower, Resource, ResourceTableError},
    format_err,
};
use wasmtime_wasi_http::{
    Error as HttpError, FieldMap, FieldMapError, WasiBody, WasiHttpHooks, WasiHttpView,
    p2::bindings::http::types as p2, p3::bindings::http::types as p3,
};

use crate::{
    instead::replace,
    state::{Budgeted, Charge, ComponentState, FIELDS, Usage},
};

/// Bytes that one value takes besides its own and its name's: its place in the map,
/// of which half may be empty, and what counts it.
const VALUE: usize = 256;

/// Where wasmtime has the functions whose place is taken.
const TYPES_2: &str = "wasi:http/types@0.2.12";
const TYPES_3: &str = "wasi:http/types@0.3.0";

type Store<'a> = StoreContextMut<'a, ComponentState>;

type Fields = Resource<FieldMap>;

/// Why fields are not as the guest wants them.
#[derive(Debug, PartialEq, Eq)]
enum Refused {
    Field(FieldMapError),
    /// Its container has no memory left.
    Memory,
    NoHandle,
}

impl From<FieldMapError> for Refused {
    fn from(error: FieldMapError) -> Self {
        Self::Field(error)
    }
}

impl From<ResourceTableError> for Refused {
    fn from(_: ResourceTableError) -> Self {
        Self::NoHandle
    }
}

/// A value's bytes.
struct Counted {
    bytes: Box<[u8]>,
    _charge: Charge,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Counts one value. Its bytes are copied: they may be a piece of something larger.
fn count(
    name: &HeaderName,
    value: &mut HeaderValue,
    charge: &mut impl FnMut(u64) -> Option<Charge>,
) -> Option<()> {
    let bytes = VALUE + name.as_str().len() + value.len();
    let charge = charge(bytes as u64)?;
    let counted = Counted { bytes: value.as_bytes().into(), _charge: charge };
    let mut counted = HeaderValue::from_maybe_shared(Bytes::from_owner(counted)).ok()?;
    counted.set_sensitive(value.is_sensitive());
    *value = counted;
    Some(())
}

/// Counts all values. None if that were more than the container may have.
pub(crate) fn count_all(
    map: &mut HeaderMap,
    mut charge: impl FnMut(u64) -> Option<Charge>,
) -> Option<()> {
    map.iter_mut().try_for_each(|(name, value)| count(name, value, &mut charge))
}

/// A body from the other side, whose trailers a guest may keep.
pub(crate) struct Trailed {
    body: WasiBody,
    usage: Arc<Usage>,
}

impl Trailed {
    pub(crate) fn new(body: WasiBody, usage: Arc<Usage>) -> Self {
        Self { body, usage }
    }
}

impl Body for Trailed {
    type Data = Bytes;
    type Error = HttpError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, HttpError>>> {
        let mut frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &mut frame
            && let Some(trailers) = frame.trailers_mut()
            && count_all(trailers, |bytes| self.usage.charge(bytes)).is_none()
        {
            return Poll::Ready(Some(Err(no_memory())));
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What is told of an answer whose fields are too many for the container.
pub(crate) fn no_memory() -> HttpError {
    HttpError::InternalError(Some("the container has no memory left for fields".to_owned()))
}

/// Counts those of one name, or the last of them only.
fn count_of(
    map: &mut HeaderMap,
    name: &HeaderName,
    is_last_only: bool,
    mut charge: impl FnMut(u64) -> Option<Charge>,
) -> Option<()> {
    let Ok(Entry::Occupied(mut values)) = map.try_entry(name) else { return Some(()) };
    let skipped = if is_last_only { values.iter().count() - 1 } else { 0 };
    values.iter_mut().skip(skipped).try_for_each(|value| count(name, value, &mut charge))
}

/// Fields that their guest may change.
fn mutable(hooks: &mut dyn WasiHttpHooks, map: HeaderMap) -> FieldMap {
    let mut fields = FieldMap::new_immutable(hooks, map);
    fields.set_mutable(FIELDS);
    fields
}

fn from_list(
    state: &mut ComponentState,
    entries: Vec<(String, Vec<u8>)>,
) -> Result<Fields, Refused> {
    let mut fields = FieldMap::new_mutable(FIELDS);
    for (name, value) in entries {
        fields.append(state.http().hooks, name, value)?;
    }
    all_counted(state, fields)
}

fn clone(state: &mut ComponentState, fields: &Fields) -> Result<Fields, Refused> {
    let fields = state.http().table.get(fields)?.clone();
    all_counted(state, fields)
}

/// A new handle.
fn all_counted(state: &mut ComponentState, fields: FieldMap) -> Result<Fields, Refused> {
    let mut map = HeaderMap::from(fields);
    count_all(&mut map, |bytes| state.budget().charge(bytes)).ok_or(Refused::Memory)?;
    let http = state.http();
    Ok(http.table.push(mutable(http.hooks, map))?)
}

fn set(
    state: &mut ComponentState,
    fields: &Fields,
    name: String,
    values: Vec<Vec<u8>>,
) -> Result<(), Refused> {
    change(state, fields, &name.clone(), false, |fields, hooks| fields.set(hooks, name, values))
}

fn append(
    state: &mut ComponentState,
    fields: &Fields,
    name: String,
    value: Vec<u8>,
) -> Result<(), Refused> {
    change(state, fields, &name.clone(), true, |fields, hooks| {
        fields.append(hooks, name, value).map(drop)
    })
}

/// Changes the values of one name as wasmtime does, or leaves all as it was.
fn change(
    state: &mut ComponentState,
    fields: &Fields,
    name: &str,
    is_last_only: bool,
    change: impl FnOnce(&mut FieldMap, &mut dyn WasiHttpHooks) -> Result<(), FieldMapError>,
) -> Result<(), Refused> {
    let http = state.http();
    let mut changed = http.table.get(fields)?.clone();
    change(&mut changed, http.hooks)?;
    let mut map = HeaderMap::from(changed);
    let name: HeaderName = name.parse().map_err(|_| FieldMapError::InvalidHeaderName)?;
    count_of(&mut map, &name, is_last_only, |bytes| state.budget().charge(bytes))
        .ok_or(Refused::Memory)?;
    let http = state.http();
    let changed = mutable(http.hooks, map);
    drop(mem::replace(http.table.get_mut(fields)?, changed));
    Ok(())
}

/// As wasmtime tells guests of 0.2, whose errors have no word for size.
fn told_2<T>(result: Result<T, Refused>) -> wasmtime::Result<(Result<T, p2::HeaderError>,)> {
    let error = match result {
        Ok(done) => return Ok((Ok(done),)),
        Err(error) => error,
    };
    let told = match error {
        Refused::Field(FieldMapError::Immutable) => p2::HeaderError::Immutable,
        Refused::Field(FieldMapError::Forbidden) => p2::HeaderError::Forbidden,
        Refused::Field(FieldMapError::InvalidHeaderName | FieldMapError::InvalidHeaderValue) => {
            p2::HeaderError::InvalidSyntax
        }
        Refused::Field(error @ (FieldMapError::TooManyFields | FieldMapError::TotalSizeTooBig)) => {
            return Err(error.into());
        }
        Refused::Memory | Refused::NoHandle => return Err(trap(&error)),
    };
    Ok((Err(told),))
}

/// As wasmtime tells guests of 0.3.
fn told_3<T>(result: Result<T, Refused>) -> wasmtime::Result<(Result<T, p3::HeaderError>,)> {
    let error = match result {
        Ok(done) => return Ok((Ok(done),)),
        Err(error) => error,
    };
    let told = match error {
        Refused::Field(FieldMapError::Immutable) => p3::HeaderError::Immutable,
        Refused::Field(FieldMapError::Forbidden) => p3::HeaderError::Forbidden,
        Refused::Field(FieldMapError::InvalidHeaderName | FieldMapError::InvalidHeaderValue) => {
            p3::HeaderError::InvalidSyntax
        }
        Refused::Field(FieldMapError::TooManyFields | FieldMapError::TotalSizeTooBig)
        | Refused::Memory => p3::HeaderError::SizeExceeded,
        Refused::NoHandle => return Err(trap(&error)),
    };
    Ok((Err(told),))
}

fn trap(why: &Refused) -> wasmtime::Error {
    match why {
        Refused::Memory => format_err!("no memory is left for fields"),
        Refused::NoHandle => format_err!("these fields have no handle, or no more can be had"),
        Refused::Field(error) => (*error).into(),
    }
}

/// How a version tells a guest.
type Words<T, E> = fn(Result<T, Refused>) -> wasmtime::Result<(Result<T, E>,)>;

/// Puts these in the place of wasmtime's, of both versions.
pub(crate) fn add_to_linker(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    add(linker, TYPES_2, told_2, told_2)?;
    add(linker, TYPES_3, told_3, told_3)
}

fn add<E>(
    linker: &mut Linker<ComponentState>,
    types: &str,
    made: Words<Fields, E>,
    done: Words<(), E>,
) -> wasmtime::Result<()>
where
    (Result<Fields, E>,): ComponentNamedList + Lower + 'static,
    (Result<(), E>,): ComponentNamedList + Lower + 'static,
    E: 'static,
{
    replace(
        linker,
        types,
        "[static]fields.from-list",
        move |mut store: Store<'_>, (entries,): (Vec<(String, Vec<u8>)>,)| {
            made(from_list(store.data_mut(), entries))
        },
    )?;
    replace(
        linker,
        types,
        "[method]fields.set",
        move |mut store: Store<'_>, (fields, name, values): (Fields, String, Vec<Vec<u8>>)| {
            done(set(store.data_mut(), &fields, name, values))
        },
    )?;
    replace(
        linker,
        types,
        "[method]fields.append",
        move |mut store: Store<'_>, (fields, name, value): (Fields, String, Vec<u8>)| {
            done(append(store.data_mut(), &fields, name, value))
        },
    )?;
    replace(linker, types, "[method]fields.clone", |mut store: Store<'_>, (fields,): (Fields,)| {
        Ok((clone(store.data_mut(), &fields).map_err(|error| trap(&error))?,))
    })
}

#[cfg(test)]
mod tests;
