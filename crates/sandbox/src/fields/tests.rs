use std::convert::Infallible;

use http::{Request, header};
use http_body_util::{BodyExt, StreamBody};
use krustlet_protocol::Limits;
use wasmtime_wasi::WasiCtxBuilder;
use wasmtime_wasi_http::p2::bindings::http::types::{HostFields, HostOutgoingRequest as Requests};

use super::*;
use crate::{
    net::Stack,
    outgoing::{Hooks, Whose},
    state::Budget,
};

/// Bytes of the value that is used below, and what is taken for it by the name of
/// one letter.
const BYTES: usize = 1000;
const TAKEN: u64 = (VALUE + 1 + BYTES) as u64;

/// A guest whose container has memory for so many of these.
fn guest(values: u64) -> (Arc<Usage>, ComponentState) {
    let limits = Limits { memory_bytes: Some(TAKEN * values), cpu_millis: None };
    let usage = Arc::new(Usage::new(&limits));
    let hooks =
        Hooks::new(Stack::default(), Arc::new(Whose { own: None, usage: Arc::clone(&usage) }));
    let budget = Budget::new(Arc::clone(&usage));
    let state = ComponentState::new(WasiCtxBuilder::new().build(), budget, hooks, None);
    (usage, state)
}

fn value() -> Vec<u8> {
    vec![b'x'; BYTES]
}

fn again(fields: &Fields) -> Fields {
    Resource::new_borrow(fields.rep())
}

fn entries(state: &mut ComponentState, fields: &Fields) -> Vec<(String, Vec<u8>)> {
    HostFields::entries(&mut state.http(), again(fields)).unwrap()
}

fn one(state: &mut ComponentState) -> Result<Fields, Refused> {
    from_list(state, vec![("a".to_owned(), value())])
}

#[test]
fn fields_are_within_the_memory_limit_and_give_all_back() {
    const ENOUGH: u64 = 10;
    let (usage, mut state) = guest(ENOUGH);
    let mut all: Vec<_> = (0..ENOUGH).map(|_| one(&mut state).unwrap()).collect();
    assert_eq!(usage.memory(), TAKEN * ENOUGH);
    assert_eq!(one(&mut state).unwrap_err(), Refused::Memory);
    assert!(state.budget().denied().is_some());
    let fields = all.pop().unwrap();
    assert_eq!(clone(&mut state, &fields).unwrap_err(), Refused::Memory);
    assert_eq!(append(&mut state, &fields, "b".into(), value()), Err(Refused::Memory));
    let more = set(&mut state, &fields, "a".into(), vec![value(), value()]);
    assert_eq!(more, Err(Refused::Memory));
    assert_eq!(entries(&mut state, &fields), [("a".to_owned(), value())], "it is as it was");
    // What is given up makes room.
    set(&mut state, &fields, "a".into(), Vec::new()).unwrap();
    assert_eq!(usage.memory(), TAKEN * (ENOUGH - 1));
    append(&mut state, &fields, "a".into(), value()).unwrap();
    HostFields::drop(&mut state.http(), all.pop().unwrap()).unwrap();
    append(&mut state, &fields, "a".into(), value()).unwrap();
    assert_eq!(usage.memory(), TAKEN * ENOUGH);
    HostFields::delete(&mut state.http(), again(&fields), "a".into()).unwrap();
    // A copy is another one, whatever becomes of the first.
    let first = all.pop().unwrap();
    let copy = clone(&mut state, &first).unwrap();
    HostFields::drop(&mut state.http(), first).unwrap();
    assert_eq!(entries(&mut state, &copy), [("a".to_owned(), value())]);
    let rest = u64::try_from(all.len()).unwrap();
    assert_eq!(usage.memory(), TAKEN * (rest + 1));
    // Those of a request are counted as long as it is there.
    let request = Requests::new(&mut state.http(), copy).unwrap();
    let seen = Requests::headers(&mut state.http(), Resource::new_borrow(request.rep())).unwrap();
    assert_eq!(
        append(&mut state, &seen, "b".into(), value()),
        Err(Refused::Field(FieldMapError::Immutable))
    );
    assert_eq!(usage.memory(), TAKEN * (rest + 1));
    HostFields::drop(&mut state.http(), seen).unwrap();
    Requests::drop(&mut state.http(), request).unwrap();
    assert_eq!(usage.memory(), TAKEN * rest);
    drop(state);
    assert_eq!(usage.memory(), 0);
}

#[test]
fn fields_are_what_they_are_without_being_counted() {
    let (_, mut state) = guest(100);
    let text = |name: &str, value: &str| (name.to_owned(), value.as_bytes().to_vec());
    let list = vec![text("a", "1"), text("Content-Length", "7"), text("a", "2"), text("z", "3")];
    let fields = from_list(&mut state, list.clone()).unwrap();
    let plain = HostFields::from_list(&mut state.http(), list).unwrap();
    set(&mut state, &fields, "Content-Length".into(), vec![b"8".to_vec()]).unwrap();
    append(&mut state, &fields, "z".into(), b"4".to_vec()).unwrap();
    HostFields::set(&mut state.http(), again(&plain), "Content-Length".into(), vec![b"8".to_vec()])
        .unwrap();
    HostFields::append(&mut state.http(), again(&plain), "z".into(), b"4".to_vec()).unwrap();
    let expected = entries(&mut state, &plain);
    assert_eq!(entries(&mut state, &fields), expected, "also in their order");
    let copy = clone(&mut state, &fields).unwrap();
    assert_eq!(entries(&mut state, &copy), expected);

    let mut refused = |name: &str, value: &[u8]| {
        append(&mut state, &fields, name.into(), value.to_vec()).unwrap_err()
    };
    let large = refused("large", &vec![b'x'; FIELDS]);
    for (error, expected) in [
        (refused("connection", b"close"), FieldMapError::Forbidden),
        (refused("no name", b"1"), FieldMapError::InvalidHeaderName),
        (refused("b", b"\n"), FieldMapError::InvalidHeaderValue),
        (refused("content-length", b"9"), FieldMapError::InvalidHeaderValue),
        (large, FieldMapError::TotalSizeTooBig),
    ] {
        assert_eq!(error, Refused::Field(expected));
    }
}

#[test]
fn guests_are_told_in_the_words_of_their_version() {
    let of_2 = |error| told_2::<()>(Err(error)).map(|(told,)| told.unwrap_err()).ok();
    let of_3 = |error| told_3::<()>(Err(error)).map(|(told,)| told.unwrap_err()).ok();
    let field = Refused::Field;
    assert!(matches!(of_2(field(FieldMapError::Immutable)), Some(p2::HeaderError::Immutable)));
    assert!(matches!(of_2(field(FieldMapError::Forbidden)), Some(p2::HeaderError::Forbidden)));
    let syntax = of_2(field(FieldMapError::InvalidHeaderValue));
    assert!(matches!(syntax, Some(p2::HeaderError::InvalidSyntax)));
    // It has no other word.
    assert!(of_2(Refused::Memory).is_none() && of_2(Refused::NoHandle).is_none());
    assert!(of_2(field(FieldMapError::TotalSizeTooBig)).is_none());
    assert!(matches!(of_3(field(FieldMapError::Immutable)), Some(p3::HeaderError::Immutable)));
    assert!(matches!(of_3(field(FieldMapError::Forbidden)), Some(p3::HeaderError::Forbidden)));
    let syntax = of_3(field(FieldMapError::InvalidHeaderName));
    assert!(matches!(syntax, Some(p3::HeaderError::InvalidSyntax)));
    for large in [Refused::Memory, field(FieldMapError::TotalSizeTooBig)] {
        assert!(matches!(of_3(large), Some(p3::HeaderError::SizeExceeded)));
    }
    assert!(of_3(Refused::NoHandle).is_none());
}

#[tokio::test]
async fn what_comes_from_the_other_side_is_counted_while_anybody_has_it() {
    let (usage, _) = guest(2);
    let trailers = || {
        let mut trailers = HeaderMap::new();
        let mut secret = HeaderValue::from_bytes(&value()).unwrap();
        secret.set_sensitive(true);
        trailers.insert(HeaderName::from_static("a"), secret);
        trailers
    };
    let body = || {
        let frames = [Ok::<_, Infallible>(Frame::trailers(trailers()))];
        let body = StreamBody::new(futures::stream::iter(frames));
        let body = body.map_err(|never| match never {}).boxed_unsync();
        Trailed::new(body, Arc::clone(&usage))
    };
    let mut head = Request::new(()).into_parts().0.headers;
    head.insert(header::HOST, HeaderValue::from_static("web.test"));
    count_all(&mut head, |bytes| usage.charge(bytes)).unwrap();
    let kept = body().frame().await.unwrap().unwrap().into_trailers().unwrap();
    assert!(kept["a"].is_sensitive() && kept["a"].as_bytes() == value());
    let refused = body().frame().await.unwrap();
    assert!(matches!(refused, Err(HttpError::InternalError(_))), "{refused:?}");
    let same = kept.clone();
    drop(kept);
    assert!(body().frame().await.unwrap().is_err());
    drop(same);
    assert!(body().frame().await.unwrap().is_ok());
    drop(head);
    assert_eq!(usage.memory(), 0);
}
