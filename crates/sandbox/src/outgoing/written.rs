//! Bodies that guests of WASI 0.2 write, of requests and of answers.
//!
//! What is written waits in the sandbox's own memory until it is sent, and that of
//! a request may never be. So a body takes all that may wait in it out of its
//! container's memory, until it is sent or dropped; a guest that has none left
//! gets no body.

use http_body_util::BodyExt;
use wasmtime::{
    StoreContextMut,
    component::{Linker, Resource},
};
use wasmtime_wasi_http::{
    WasiBody, WasiHttpView,
    p2::{
        bindings::http::types::{
            HostOutgoingRequest as Requests, HostOutgoingResponse as Responses,
        },
        body::HostOutgoingBody,
        types::{HostOutgoingRequest, HostOutgoingResponse},
    },
};

use crate::{
    held::Held,
    instead::replace,
    state::{Budgeted, Charge, ComponentState},
};

/// Bytes that a guest may write at once. A `blocking-write-and-flush` of `wasi:io`
/// has a quarter of that.
pub(super) const CHUNK: usize = 16 << 10;

/// Such pieces that wait, besides the one that wasmtime adds.
pub(super) const BUFFERED: usize = 1;

/// Bytes that may wait in one body.
const BODY: u64 = ((BUFFERED + 1) * CHUNK) as u64;

/// Where wasmtime has the functions whose place is taken.
const TYPES: &str = "wasi:http/types@0.2.12";

/// What a guest is given for a body: none if it has one already, or may have none.
type Given = Result<Resource<HostOutgoingBody>, ()>;

/// Puts these in the place of wasmtime's.
pub(crate) fn add_to_linker(linker: &mut Linker<ComponentState>) -> wasmtime::Result<()> {
    type Store<'a> = StoreContextMut<'a, ComponentState>;
    replace(
        linker,
        TYPES,
        "[method]outgoing-request.body",
        |mut store: Store<'_>, (request,): (Resource<HostOutgoingRequest>,)| {
            Ok((of_request(store.data_mut(), request)?,))
        },
    )?;
    replace(
        linker,
        TYPES,
        "[method]outgoing-response.body",
        |mut store: Store<'_>, (response,): (Resource<HostOutgoingResponse>,)| {
            Ok((of_response(store.data_mut(), response)?,))
        },
    )
}

fn of_request(
    state: &mut ComponentState,
    request: Resource<HostOutgoingRequest>,
) -> wasmtime::Result<Given> {
    let Some(charge) = state.budget().charge(BODY) else { return Ok(Err(())) };
    let mut http = state.http();
    let again = Resource::new_borrow(request.rep());
    let given = Requests::body(&mut http, request)?;
    if given.is_ok() {
        let request: &mut HostOutgoingRequest = http.table.get_mut(&again)?;
        request.body = request.body.take().map(|body| held(body, charge));
    }
    Ok(given)
}

fn of_response(
    state: &mut ComponentState,
    response: Resource<HostOutgoingResponse>,
) -> wasmtime::Result<Given> {
    let Some(charge) = state.budget().charge(BODY) else { return Ok(Err(())) };
    let mut http = state.http();
    let again = Resource::new_borrow(response.rep());
    let given = Responses::body(&mut http, response)?;
    if given.is_ok() {
        let response: &mut HostOutgoingResponse = http.table.get_mut(&again)?;
        response.body = response.body.take().map(|body| held(body, charge));
    }
    Ok(given)
}

fn held(body: WasiBody, charge: Charge) -> WasiBody {
    Held::new(body, charge).boxed_unsync()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;
    use krustlet_protocol::Limits;
    use wasmtime_wasi::WasiCtxBuilder;
    use wasmtime_wasi_http::p2::bindings::http::types::{HostFields, HostOutgoingBody as Bodies};

    use super::*;
    use crate::{
        net::Stack,
        outgoing::{Hooks, Whose},
        state::{Budget, Usage},
    };

    /// Bodies for which the container has memory.
    const ENOUGH: usize = 10;

    fn guest() -> (Arc<Usage>, ComponentState) {
        let memory_bytes = Some(BODY * ENOUGH as u64);
        let usage = Arc::new(Usage::new(&Limits { memory_bytes, cpu_millis: None }));
        let budget = Budget::new(Arc::clone(&usage));
        let hooks =
            Hooks::new(Stack::default(), Arc::new(Whose { own: None, usage: Arc::clone(&usage) }));
        (usage, ComponentState::new(WasiCtxBuilder::new().build(), budget, hooks, None))
    }

    /// The number of a new request or answer.
    fn made(state: &mut ComponentState, is_answer: bool) -> u32 {
        let mut http = state.http();
        let fields = HostFields::new(&mut http).unwrap();
        if is_answer {
            Responses::new(&mut http, fields).unwrap().rep()
        } else {
            Requests::new(&mut http, fields).unwrap().rep()
        }
    }

    fn body(state: &mut ComponentState, rep: u32, is_answer: bool) -> Given {
        let given = if is_answer {
            of_response(state, Resource::new_borrow(rep))
        } else {
            of_request(state, Resource::new_borrow(rep))
        };
        given.unwrap()
    }

    #[test]
    fn bodies_that_are_not_sent_are_within_the_memory_limit() {
        for is_answer in [false, true] {
            let (usage, mut state) = guest();
            let mut all = Vec::new();
            for _ in 0..ENOUGH {
                let rep = made(&mut state, is_answer);
                let writer = body(&mut state, rep, is_answer).unwrap();
                assert!(body(&mut state, rep, is_answer).is_err(), "it has one");
                // As much as goes into it, and no more will be written.
                let mut http = state.http();
                let mut stream = {
                    let writer: &mut HostOutgoingBody = http.table.get_mut(&writer).unwrap();
                    writer.take_output_stream().unwrap()
                };
                let mut waiting = 0;
                while let room @ 1.. = stream.check_write().unwrap() {
                    stream.write(Bytes::from(vec![0; room])).unwrap();
                    waiting += room as u64;
                }
                assert_eq!(waiting, BODY);
                drop(stream);
                Bodies::finish(&mut http, writer, None).unwrap();
                all.push(rep);
            }
            assert_eq!(usage.memory(), BODY * ENOUGH as u64);
            let refused = made(&mut state, is_answer);
            assert!(body(&mut state, refused, is_answer).is_err());
            assert!(state.budget().denied().is_some());
            // One that goes makes room for another.
            let mut http = state.http();
            let first = all.remove(0);
            if is_answer {
                Responses::drop(&mut http, Resource::new_own(first)).unwrap();
            } else {
                Requests::drop(&mut http, Resource::new_own(first)).unwrap();
            }
            assert!(body(&mut state, refused, is_answer).is_ok());
            drop(state);
            assert_eq!(usage.memory(), 0);
        }
    }
}
