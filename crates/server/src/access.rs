//! Who may ask what: the mapping of a request to the attributes that the API
//! server is asked to judge.

use futures::future::BoxFuture;
use http::Method;

use crate::identity::User;

/// Asks the API server who somebody is and what they may do.
///
/// The binary implements it for the cluster's reviews, which cache; tests for
/// a table.
pub trait Reviews: Send + Sync + 'static {
    /// Who holds this bearer token. None if nobody does.
    fn token(&self, bearer: String) -> BoxFuture<'_, Result<Option<User>, ReviewFailed>>;

    /// Whether the user may do this.
    fn access(&self, user: User, wanted: Attributes) -> BoxFuture<'_, Result<bool, ReviewFailed>>;
}

/// The API server could not be asked.
#[derive(Debug, thiserror::Error)]
#[error("cannot ask the API server: {0}")]
pub struct ReviewFailed(pub String);

/// What a request does, in the words of a SubjectAccessReview: `verb` on
/// `nodes/<subresource>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Attributes {
    /// `get`, `create`, `update`, `patch` or `delete`.
    pub verb: &'static str,
    /// `proxy`, `log`, `stats`, `metrics`, `healthz`, `pods`, `configz`, …
    pub subresource: &'static str,
}

/// The attributes to try in order; one that is allowed suffices.
///
/// Source: kubelet, `NewNodeAuthorizerAttributesGetter` in
/// `pkg/kubelet/server/auth.go`, with fine-grained authorization.
#[must_use]
pub fn attributes(method: &Method, path: &str) -> Vec<Attributes> {
    let verb = match *method {
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE => "delete",
        _ => "get",
    };
    let under = |root: &str| {
        path.strip_prefix(root).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let first = if under("/stats") {
        Some("stats")
    } else if under("/metrics") {
        Some("metrics")
    } else if under("/logs") {
        Some("log")
    } else if under("/checkpoint") {
        Some("checkpoint")
    } else if under("/statusz") {
        Some("statusz")
    } else {
        None
    };
    if let Some(subresource) = first {
        return vec![Attributes { verb, subresource }];
    }
    let fine = if under("/healthz") {
        Some("healthz")
    } else if under("/pods") || under("/runningpods") {
        Some("pods")
    } else if under("/configz") || under("/flagz") {
        Some("configz")
    } else {
        None
    };
    fine.into_iter().chain(["proxy"]).map(|subresource| Attributes { verb, subresource }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_path_asks_for_its_own_subresource() {
        let cases = [
            ("/containerLogs/ns/pod/c", vec!["proxy"]),
            ("/pods", vec!["pods", "proxy"]),
            ("/runningpods/", vec!["pods", "proxy"]),
            ("/healthz/syncloop", vec!["healthz", "proxy"]),
            ("/metrics/resource", vec!["metrics"]),
            ("/metricsandmore", vec!["proxy"]),
            ("/stats/summary", vec!["stats"]),
            ("/logs/kern.log", vec!["log"]),
            ("/configz", vec!["configz", "proxy"]),
            ("/exec/ns/pod/c", vec!["proxy"]),
            ("/", vec!["proxy"]),
        ];
        for (path, wanted) in cases {
            let found: Vec<_> =
                attributes(&Method::GET, path).into_iter().map(|a| a.subresource).collect();
            assert_eq!(found, wanted, "{path}");
        }
    }

    #[test]
    fn the_verb_follows_the_method() {
        for (method, verb) in [
            (Method::GET, "get"),
            (Method::HEAD, "get"),
            (Method::POST, "create"),
            (Method::PUT, "update"),
            (Method::PATCH, "patch"),
            (Method::DELETE, "delete"),
        ] {
            assert_eq!(attributes(&method, "/pods")[0].verb, verb);
        }
    }
}
