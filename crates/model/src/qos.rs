//! A pod's class of service.

use k8s_openapi::api::core::v1::Pod;

use crate::{
    quantity::{self, Amount},
    restarts,
};

/// `Guaranteed`, `Burstable` or `BestEffort`, from what the containers request
/// of CPU and memory.
///
/// The API server computes it for its pods; this is for pods from a file.
/// Source: `ComputePodQOS` in `pkg/apis/core/v1/helper/qos/qos.go`.
#[must_use]
pub fn qos_class(pod: &Pod) -> &'static str {
    let mut any = false;
    let mut guaranteed = true;
    for (_, container) in restarts::containers(pod) {
        for name in ["cpu", "memory"] {
            let resources = container.resources.as_ref();
            let limit = amount(resources.and_then(|all| all.limits.as_ref()?.get(name)));
            // Without a request, the limit is the request.
            let request =
                amount(resources.and_then(|all| all.requests.as_ref()?.get(name))).or(limit);
            any |= limit.is_some() || request.is_some();
            guaranteed &= limit.is_some() && limit == request;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// A positive amount; zero and nonsense count as absent.
fn amount(
    quantity: Option<&k8s_openapi::apimachinery::pkg::api::resource::Quantity>,
) -> Option<Amount> {
    quantity.and_then(|quantity| quantity::parse(quantity).ok()).filter(|amount| !amount.is_zero())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_class_follows_requests_and_limits() {
        let table = [
            (json!({}), "BestEffort"),
            (json!({"requests": {"cpu": "0"}}), "BestEffort"),
            (json!({"requests": {"cpu": "1"}}), "Burstable"),
            (json!({"limits": {"memory": "1Mi"}}), "Burstable"),
            (json!({"limits": {"cpu": "1", "memory": "1Mi"}}), "Guaranteed"),
            (
                json!({"limits": {"cpu": "1", "memory": "1Mi"}, "requests": {"cpu": "1000m", "memory": "1024Ki"}}),
                "Guaranteed",
            ),
            (
                json!({"limits": {"cpu": "1", "memory": "1Mi"}, "requests": {"cpu": "500m"}}),
                "Burstable",
            ),
        ];
        for (resources, class) in table {
            let pod: Pod = serde_json::from_value(json!({
                "metadata": {"name": "p"},
                "spec": {"containers": [{"name": "c", "resources": resources}]},
            }))
            .unwrap();
            assert_eq!(qos_class(&pod), class, "{resources}");
        }
    }
}
