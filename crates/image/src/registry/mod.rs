//! Speaking with registries: the OCI distribution protocol.
//!
//! | module | its idea |
//! |---|---|
//! | [`rules`] | which hosts are asked, and how |
//! | [`guard`] | where a registry may lead the node |
//! | [`challenge`] | what a registry wants for a login |
//! | [`retry`] | how often and how soon to ask again |
//! | [`http`] | one request, with redirects and login |
//! | [`fetch`] | manifests and blobs, checked as they come |
//! | [`upload`] | blobs and manifests, the other way |
//!
//! What the documents mean, and where content is kept, is decided elsewhere.

pub(crate) mod challenge;
pub(crate) mod error;
pub(crate) mod fetch;
pub(crate) mod guard;
pub(crate) mod http;
pub(crate) mod retry;
pub(crate) mod rules;
pub(crate) mod upload;
