//! One request to a registry: redirects, login and refusals.
//!
//! Written on plain HTTP rather than on a registry client library, because what matters
//! here lies between the steps such a library takes: each redirect is judged, credentials
//! stop at the registry's door, and a broken transfer is resumed by the caller
//! ([`super::fetch`]). Repetition is the caller's ([`super::retry`]).

use std::fmt;
use std::fs;
use std::future::Future;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use krustlet_resolver::SystemLookups;
use reqwest::header::{
    AUTHORIZATION, HeaderMap, HeaderValue, LOCATION, RETRY_AFTER, WWW_AUTHENTICATE,
};
use reqwest::{Body, Certificate, Client, Method, Response, StatusCode, redirect};
use serde::Deserialize;
use url::Url;

use super::challenge::{self, Challenge};
use super::error::RequestError;
use super::guard::{self, GuardedResolver};
use super::retry::parse_retry_after;
use super::rules::{Endpoint, RegistryRules, is_loopback};
use crate::access::Right;
use crate::credential::{Credential, Login};
use crate::limits::PullLimits;
use crate::store::OpenError;

/// Longest error text read from a registry, in bytes.
const DETAIL_LIMIT: usize = 8 << 10;

/// Longest answer of a token server, in bytes. Tokens with many claims reach some 10 KiB.
const TOKEN_LIMIT: usize = 256 << 10;

/// What is done with a repository; token servers are told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Pull,
    Push,
}

/// A place to ask, and what it is shown.
pub(crate) struct Access {
    pub endpoint: Endpoint,
    pub purpose: Purpose,
    credential: Option<Credential>,
    /// What the registry last accepted, or may.
    authorization: Option<HeaderValue>,
}

impl fmt::Debug for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Access")
            .field("endpoint", &self.endpoint)
            .field("credential", &self.credential)
            .finish_non_exhaustive()
    }
}

impl Access {
    pub(crate) fn new(
        endpoint: Endpoint,
        purpose: Purpose,
        credential: Option<Credential>,
    ) -> Self {
        // An access token needs no negotiation; anything else waits to be asked for.
        let authorization = match credential.as_ref().map(Credential::login) {
            Some(Login::Registry(token)) => bearer(token),
            Some(Login::Basic { .. } | Login::Identity(_)) | None => None,
        };
        Self { endpoint, purpose, credential, authorization }
    }

    /// What was proved by what was given out so far. A registry that asked for no login gives to everyone.
    pub(crate) fn right(&self) -> Right {
        match (&self.authorization, &self.credential) {
            (Some(_), Some(credential)) => credential.right(),
            // A token that was had without a login is anybody's.
            (Some(_) | None, None) | (None, Some(_)) => Right::NodePods,
        }
    }

    /// The URL of something in the repository.
    pub(crate) fn url(&self, rest: &str) -> Result<Url, RequestError> {
        self.endpoint.base.join(rest).map_err(|error| RequestError::Answer {
            host: self.endpoint.host.clone(),
            what: format!("no address for {rest:?}: {error}"),
        })
    }
}

/// A request that can be sent again.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub method: Method,
    pub url: Url,
    pub headers: HeaderMap,
    /// A small document.
    pub body: Option<Vec<u8>>,
}

/// Speaks HTTP with registries.
#[derive(Clone, Debug)]
pub(crate) struct Http {
    /// For hosts that a reference or the configuration names.
    named: Client,
    /// For hosts that a registry names: a name does not mean the node itself there.
    led: Client,
    pub limits: PullLimits,
}

#[derive(Deserialize)]
struct TokenAnswer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

#[derive(Deserialize)]
struct ErrorAnswer {
    errors: Vec<ErrorItem>,
}

#[derive(Deserialize)]
struct ErrorItem {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl Http {
    pub(crate) fn new(rules: &RegistryRules, limits: &PullLimits) -> Result<Self, OpenError> {
        // Without a choice rustls refuses to begin; an earlier one by the binary stands.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let mut authorities = Vec::new();
        for path in &rules.authorities {
            let failed = |source| OpenError::Authority { path: path.clone(), source };
            let pem = fs::read(path).map_err(failed)?;
            let found = Certificate::from_pem_bundle(&pem)
                .map_err(|error| failed(std::io::Error::other(error)))?;
            if found.is_empty() {
                return Err(failed(std::io::Error::other("it holds no certificate")));
            }
            authorities.extend(found);
        }
        let lookups = SystemLookups::new(guard::LOOKUPS);
        let build = |loopback| {
            let mut builder = Client::builder()
                .user_agent(concat!("krustlet/", env!("CARGO_PKG_VERSION")))
                .redirect(redirect::Policy::none())
                .connect_timeout(limits.connect)
                .dns_resolver(GuardedResolver { lookups: lookups.clone(), loopback })
                // What is asked for is compared byte by byte.
                .referer(false);
            if !authorities.is_empty() {
                builder = builder.tls_certs_merge(authorities.iter().cloned());
            }
            builder.build().map_err(|source| OpenError::Client { source })
        };
        Ok(Self { named: build(true)?, led: build(false)?, limits: limits.clone() })
    }

    /// Asks once, logging in and following redirects as needed. Any status but success
    /// is an error.
    pub(crate) async fn ask(
        &self,
        access: &mut Access,
        ask: &Ask,
    ) -> Result<Response, RequestError> {
        let response = self.follow(access, ask).await?;
        let response = if response.status() == StatusCode::UNAUTHORIZED
            && self.log_in(access, &response).await?
        {
            self.follow(access, ask).await?
        } else {
            response
        };
        succeed(&access.endpoint.host, response).await
    }

    /// Sends a body, which cannot be sent twice: so no redirect is followed and the login
    /// has to be known. `wait` bounds the whole.
    pub(crate) async fn send(
        &self,
        access: &Access,
        ask: Ask,
        body: Body,
        wait: std::time::Duration,
    ) -> Result<Response, RequestError> {
        let host = &access.endpoint.host;
        let request = self.request(access, &ask)?.body(body).send();
        let response = match tokio::time::timeout(wait, request).await {
            Ok(response) => response.map_err(|error| RequestError::client(host, error))?,
            Err(_) => return Err(RequestError::Stalled { host: host.clone(), limit: wait }),
        };
        succeed(host, response).await
    }

    async fn follow(&self, access: &Access, ask: &Ask) -> Result<Response, RequestError> {
        let host = &access.endpoint.host;
        let mut ask = ask.clone();
        let mut hops = 0;
        loop {
            let request = self.request(access, &ask)?.send();
            let response = self
                .within_stall(host, request)
                .await?
                .map_err(|error| RequestError::client(ask.url.host_str().unwrap_or(host), error))?;
            let is_redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            // What is written goes to the registry and nowhere else.
            if !is_redirect || !ask.method.is_safe() {
                return Ok(response);
            }
            let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
            let guarded = |source| RequestError::Guarded { host: host.clone(), source };
            ask.url = guard::next_hop(&ask.url, location, hops).map_err(guarded)?;
            hops += 1;
        }
    }

    fn request(&self, access: &Access, ask: &Ask) -> Result<reqwest::RequestBuilder, RequestError> {
        let endpoint = &access.endpoint;
        let is_home = guard::is_same_origin(&ask.url, &endpoint.base);
        if !(is_home && endpoint.is_named) {
            guard::check_host(&ask.url)
                .map_err(|source| RequestError::Guarded { host: endpoint.host.clone(), source })?;
        }
        let client = if is_home || is_loopback(&endpoint.base) { &self.named } else { &self.led };
        let mut request =
            client.request(ask.method.clone(), ask.url.clone()).headers(ask.headers.clone());
        if let Some(body) = &ask.body {
            request = request.body(body.clone());
        }
        if let Some(authorization) = access.authorization.as_ref().filter(|_| is_home) {
            request = request.header(AUTHORIZATION, authorization);
        }
        Ok(request)
    }

    /// Does what the registry asks for. False if it asks for nothing that can be given.
    async fn log_in(&self, access: &mut Access, response: &Response) -> Result<bool, RequestError> {
        // A redirect's target that refuses is not the registry, and learns nothing.
        if !guard::is_same_origin(response.url(), &access.endpoint.base) {
            return Ok(false);
        }
        let headers = response.headers().get_all(WWW_AUTHENTICATE);
        for challenge in challenge::parse(headers.iter().filter_map(|value| value.to_str().ok())) {
            match (challenge, access.credential.as_ref().map(Credential::login)) {
                (_, Some(Login::Registry(_))) => return Ok(false),
                (Challenge::Basic, Some(Login::Basic { username, password })) => {
                    let header = basic(username, password);
                    let is_new = access.authorization != header;
                    access.authorization = header;
                    return Ok(is_new);
                }
                (Challenge::Basic, Some(Login::Identity(_)) | None) => {}
                (Challenge::Bearer { realm, service, scope }, login) => {
                    let token = self.token(access, login, &realm, service, scope).await?;
                    access.authorization = bearer(&token);
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Gets a token from the server that the registry names.
    async fn token(
        &self,
        access: &Access,
        login: Option<&Login>,
        realm: &str,
        service: Option<String>,
        scope: Option<String>,
    ) -> Result<String, RequestError> {
        let host = &access.endpoint.host;
        let answer =
            |what: &str| RequestError::Answer { host: host.clone(), what: what.to_owned() };
        let mut realm = Url::parse(realm).map_err(|_| answer("its token server has no address"))?;
        guard::check_step(&access.endpoint.base, &realm)
            .map_err(|source| RequestError::Guarded { host: host.clone(), source })?;
        let scope = scope.unwrap_or_else(|| {
            let actions = match access.purpose {
                Purpose::Pull => "pull",
                Purpose::Push => "pull,push",
            };
            format!("repository:{}:{actions}", access.endpoint.repository)
        });
        let mut fields = vec![("client_id", "krustlet".to_owned())];
        fields.extend(service.map(|service| ("service", service)));
        // A scope may hold several, each a parameter of its own.
        fields.extend(scope.split_whitespace().map(|scope| ("scope", scope.to_owned())));
        let is_near = guard::is_same_origin(&realm, &access.endpoint.base)
            || is_loopback(&access.endpoint.base);
        let client = if is_near { &self.named } else { &self.led };
        let request = if let Some(Login::Identity(token)) = login {
            let mut form = url::form_urlencoded::Serializer::new(String::new());
            form.append_pair("grant_type", "refresh_token").append_pair("refresh_token", token);
            for (name, value) in &fields {
                form.append_pair(name, value);
            }
            client
                .post(realm.clone())
                .header(reqwest::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form.finish())
        } else {
            realm.query_pairs_mut().extend_pairs(&fields);
            let request = client.get(realm.clone());
            match login {
                Some(Login::Basic { username, password }) => match basic(username, password) {
                    Some(header) => request.header(AUTHORIZATION, header),
                    None => request,
                },
                Some(Login::Identity(_) | Login::Registry(_)) | None => request,
            }
        };
        let server = realm.host_str().unwrap_or(host).to_owned();
        let response = self
            .within_stall(&server, request.send())
            .await?
            .map_err(|error| RequestError::client(&server, error))?;
        if response.status() == StatusCode::BAD_REQUEST {
            // Some servers say so of a wrong refresh token.
            let detail = detail(response).await;
            return Err(RequestError::Denied { host: server, detail });
        }
        let response = succeed(&server, response).await?;
        let body = self.body(&server, response, TOKEN_LIMIT).await?;
        let answered: TokenAnswer =
            serde_json::from_slice(&body).map_err(|_| answer("its token server sent no token"))?;
        let token = answered.token.or(answered.access_token).filter(|token| !token.is_empty());
        token.ok_or_else(|| answer("its token server sent no token"))
    }

    /// Reads a whole small answer.
    pub(crate) async fn body(
        &self,
        host: &str,
        mut response: Response,
        limit: usize,
    ) -> Result<Vec<u8>, RequestError> {
        let mut body = Vec::new();
        loop {
            let chunk = self.within_stall(host, response.chunk()).await?;
            let broken = |error: reqwest::Error| RequestError::Broken {
                host: host.to_owned(),
                received: body.len() as u64,
                source: Some(error.without_url().into()),
            };
            let Some(chunk) = chunk.map_err(broken)? else { return Ok(body) };
            if body.len() + chunk.len() > limit {
                let what = format!("an answer of {host}");
                return Err(RequestError::TooBig { what, limit: limit as u64 });
            }
            body.extend_from_slice(&chunk);
        }
    }

    /// Waits for the next sign of life, but not for ever.
    pub(crate) async fn within_stall<T>(
        &self,
        host: &str,
        work: impl Future<Output = T>,
    ) -> Result<T, RequestError> {
        let limit = self.limits.stall;
        tokio::time::timeout(limit, work)
            .await
            .map_err(|_| RequestError::Stalled { host: host.to_owned(), limit })
    }
}

/// Turns any status but success into an error.
async fn succeed(host: &str, response: Response) -> Result<Response, RequestError> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let host = host.to_owned();
    let retry_after = response.headers().get(RETRY_AFTER).and_then(|value| value.to_str().ok());
    let retry_after = retry_after.and_then(|text| parse_retry_after(text, SystemTime::now()));
    let detail = detail(response).await;
    Err(match status.as_u16() {
        401 | 403 => RequestError::Denied { host, detail },
        404 | 410 => RequestError::NotFound { host, detail },
        status => RequestError::Status { host, status, detail, retry_after },
    })
}

/// What the registry says about its refusal, as `: CODE: message`, or nothing.
async fn detail(mut response: Response) -> String {
    let mut body = Vec::new();
    // The refusal is known; its text is worth a moment, not a stall.
    let read = async {
        while let Ok(Some(chunk)) = response.chunk().await {
            body.extend_from_slice(&chunk);
            if body.len() > DETAIL_LIMIT {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(std::time::Duration::from_secs(2), read).await;
    let Ok(answer) = serde_json::from_slice::<ErrorAnswer>(&body) else { return String::new() };
    let Some(first) = answer.errors.into_iter().next() else { return String::new() };
    let text = match (first.code.is_empty(), first.message.is_empty()) {
        (true, true) => return String::new(),
        (false, true) => first.code,
        (true, false) => first.message,
        (false, false) => format!("{}: {}", first.code, first.message),
    };
    // People read this in events: one line, of bounded length.
    let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    format!(": {text}")
}

fn bearer(token: &str) -> Option<HeaderValue> {
    secret_header(&format!("Bearer {token}"))
}

fn basic(username: &str, password: &str) -> Option<HeaderValue> {
    secret_header(&format!("Basic {}", STANDARD.encode(format!("{username}:{password}"))))
}

fn secret_header(text: &str) -> Option<HeaderValue> {
    let mut header = HeaderValue::from_str(text).ok()?;
    header.set_sensitive(true);
    Some(header)
}
